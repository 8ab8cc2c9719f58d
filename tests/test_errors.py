"""Wrong input: one clear exception, which names operation, shapes and the user's line, and nothing half-written."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tapegrad as tg
from tapegrad import errors
from tapegrad.errors import (
    AxisError,
    BoundsError,
    DataError,
    DeviceError,
    DTypeError,
    GradientError,
    InPlaceError,
    OptionError,
    ShapeError,
    StateError,
    TapegradError,
    TracingError,
    ValueCheckError,
)
from tapegrad.models import (
    MLP,
    SGD,
    Adam,
    DataLoader,
    Dropout,
    Linear,
    StepLR,
    accuracy,
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    cross_entropy,
    fit,
    load_weights,
    mse_loss,
    nll_loss,
    save_weights,
)
from tapegrad.models.data import load, mnist, quadrants
from tapegrad.testing import run_kernel

ROOT = Path(__file__).parents[1]


def ones(*shape: int, dtype: str = "float32") -> tg.Tensor:
    return tg.Tensor(np.ones(shape, dtype))


def variable(*shape: int) -> tg.Tensor:
    return tg.Tensor(np.ones(shape, "f"), requires_grad=True)


@dataclass(frozen=True)
class Case:
    """Something wrong, the exception it gives, and what its message must say."""

    name: str
    run: Callable[[], Any]
    error: type[TapegradError]
    says: tuple[str, ...]


def case(name: str, run: Callable[[], Any], error: type[TapegradError], *says: str) -> Any:
    return pytest.param(Case(name, run, error, says), id=name.replace(" ", "-"))


def subtract_in_place(x: tg.Tensor, amount: Any) -> None:
    x -= amount


def assign(x: Any, index: Any, value: Any) -> None:
    x[index] = value


def backward_twice() -> None:
    x = variable(2)
    loss = (x * x).sum()
    loss.backward()
    loss.item()
    loss.backward()


def branch_on_a_value() -> None:
    tg.jit(lambda x: x if x.sum() > 0 else -x)(np.ones(2, "f"))


def keep_a_traced_tensor() -> None:
    kept: list[tg.Tensor] = []
    tg.jit(lambda x: kept.append(x * 2))(np.ones(1, "f"))
    kept[0].item()


def read_a_used_up_gradient() -> None:
    p = variable(2)
    optimizer = SGD([p], lr=0.1)

    @tg.jit
    def step() -> None:
        optimizer.zero_grad()
        (p * p).sum().backward()
        optimizer.step()

    step()
    _ = p.grad


SHAPES = [
    case("add", lambda: ones(2, 3) + ones(4), ShapeError, "add", "(2, 3)", "(4,)"),
    case("where", lambda: tg.where(ones(2, dtype="bool"), ones(3), 0.0), ShapeError, "where", "(2,)", "(3,)"),
    case("matmul", lambda: ones(2, 3) @ ones(4, 5), ShapeError, "matmul", "(2, 3)", "(4, 5)"),
    case("matmul of a scalar", lambda: ones(2, 3) @ ones(), ShapeError, "matmul", "()", "multiply"),
    case("reshape", lambda: ones(2, 3).reshape(4, 2), ShapeError, "reshape", "(2, 3)", "(4, 2)"),
    case("broadcast_to", lambda: tg.broadcast_to(ones(2, 3), (3, 2)), ShapeError, "broadcast", "(2, 3)", "(3, 2)"),
    case("concatenate", lambda: tg.concatenate([ones(2, 3), ones(2, 4)]), ShapeError, "concatenate", "(2, 3)"),
    case("stack", lambda: tg.stack([ones(2), ones(3)]), ShapeError, "stack", "(2,)", "(3,)"),
    case("a ragged list", lambda: tg.Tensor([[1.0], [1.0, 2.0]]), ShapeError, "rectangular"),
    case("item of several", lambda: ones(2).item(), ShapeError, "item", "(2,)"),
    case("a layer's input", lambda: Linear(3, 2)(ones(5, 4)), ShapeError, "Linear(3, 2)", "(5, 4)"),
    case("a target", lambda: mse_loss(ones(4, 1), ones(4)), ShapeError, "mse_loss", "(4, 1)", "(4,)"),
    case("labels", lambda: cross_entropy(ones(4, 3), [0, 1]), ShapeError, "cross_entropy", "(4, 3)", "(2,)"),
    case("rows of a loader", lambda: DataLoader(np.ones(3), np.ones(4), batch_size=2), ShapeError, "(3,)", "(4,)"),
    case("steps of a scan", lambda: tg.jit(lambda x, y: x + y).scan(ones(3), ones(4)), ShapeError, "scan", "(3,)"),
    case("predictions", lambda: accuracy(np.ones((4, 3)), [0, 1]), ShapeError, "accuracy", "(4, 3)", "(2,)"),
    case("a gradient", lambda: setattr(variable(2), "grad", np.ones(3)), ShapeError, "grad", "(3,)", "(2,)"),
]

AXES = [
    case("sum", lambda: ones(2, 3).sum(axis=2), AxisError, "sum", "2", "(2, 3)"),
    case("softmax", lambda: tg.softmax(ones(2, 3), axis=-3), AxisError, "softmax", "-3", "(2, 3)"),
    case("transpose", lambda: tg.transpose(ones(2, 3), (0, 0)), AxisError, "transpose", "(2, 3)"),
    case("len of a scalar", lambda: len(ones()), AxisError, "len", "0-d"),
]

DTYPES = [
    case("complex", lambda: tg.Tensor(np.ones(2, "complex64")), DTypeError, "complex64", "cast"),
    case("an object", lambda: tg.Tensor({"a": 1}), DTypeError, "dict"),
    case("a name", lambda: ones(2).astype("float12"), DTypeError, "float12"),
    case("an argument", lambda: tg.jit(lambda x: x)(np.ones(2, "uint16")), DTypeError, "argument x", "uint16"),
    case("floating labels", lambda: cross_entropy(ones(2, 3), [0.0, np.nan]), DTypeError, "labels", "integers"),
    case("a default dtype", lambda: tg.default_dtype_scope("int32").__enter__(), DTypeError, "float32", "int32"),
    case("a floating index", lambda: ones(3)[ones(2)], DTypeError, "ind", "float32"),
]

GRADIENTS = [
    case("a backward of several", lambda: (variable(3) * 2).backward(), GradientError, "(3,)", "scalar"),
    case("a backward without a variable", lambda: ones(2).sum().backward(), GradientError, "requires_grad=True"),
    case("a backward twice", backward_twice, GradientError, "retain_graph=True"),
    case("an integer variable", lambda: tg.Tensor([1], requires_grad=True), GradientError, "int64"),
    case("grad of several", lambda: tg.grad(lambda x: x * 2)(ones(3)), GradientError, "(3,)"),
    case("grad of integers", lambda: tg.grad(lambda x: (x * 2.0).sum())(tg.Tensor([1])), GradientError, "int64"),
    case("a gradient used up", read_a_used_up_gradient, GradientError, "keep_grads=True", "return it"),
]

IN_PLACE = [
    case("a float into integers", lambda: subtract_in_place(tg.Tensor([1]), 0.5), InPlaceError, "int64", "float32"),
    case("a variable", lambda: subtract_in_place(variable(2), 1.0), InPlaceError, "x -= y", "no_grad"),
    case("another shape", lambda: subtract_in_place(ones(1), ones(2)), InPlaceError, "(1,)", "(2,)"),
    case("an element of a variable", lambda: assign(variable(2), 0, 1.0), InPlaceError, "no_grad"),
    case("data of another shape", lambda: setattr(variable(2), "data", np.ones(3)), InPlaceError, "(2,)", "(3,)"),
]

VALUES = [
    case("a label", lambda: cross_entropy(ones(2, 3), [0, 3]).item(), BoundsError, "label", "0 ... 2"),
    case("a negative label", lambda: nll_loss(ones(2, 3), [-1, 0]).item(), BoundsError, "nll_loss", "0 ... 2"),
    case("an index", lambda: ones(3)[np.array([0, 3])].numpy(), BoundsError, "out of range"),
    case("a known index", lambda: ones(3)[5], BoundsError, "5", "3"),
    case(
        "a label that is a probability too many",
        lambda: binary_cross_entropy_with_logits(ones(2), [0.5, 1.5]).item(),
        BoundsError,
        "binary_cross_entropy_with_logits",
        "0 ... 1",
    ),
    case("a logit", lambda: binary_cross_entropy(ones(2) * 3, ones(2)).item(), BoundsError, "prediction", "logits"),
    case("a NaN target", lambda: mse_loss(ones(2), [np.nan, 1.0]).item(), ValueCheckError, "mse_loss", "NaN"),
    case("a NaN label", lambda: binary_cross_entropy(ones(1), [np.nan]).item(), TapegradError, "target"),
    case(
        "a NaN probability",
        lambda: cross_entropy(ones(1, 2), [[np.nan, 1.0]]).item(),
        ValueCheckError,
        "cross_entropy",
        "NaN",
    ),
]

EMPTY = [
    case("a mean loss", lambda: cross_entropy(ones(0, 3), np.ones(0, int)), ShapeError, "cross_entropy", "empty"),
    case("a maximum", lambda: ones(0).max(), ShapeError, "max", "(0,)"),
    case("a scan of no steps", lambda: tg.jit(lambda x: x).scan(ones(0)), ShapeError, "no steps"),
    case(
        "a training without rows",
        lambda: fit(MLP(2, [], 1), (np.ones((0, 2)), np.ones((0, 1))), mse_loss, SGD([variable(1)])),
        ShapeError,
        "row",
    ),
]

OPTIONS = [
    case("a device", lambda: tg.Tensor(1.0, device="abacus"), DeviceError, "abacus", "cpu"),
    case("an activation", lambda: MLP(2, [3], 1, activation="rulu"), OptionError, "rulu", "relu"),
    case("a reduction", lambda: mse_loss(ones(1), ones(1), reduction="avg"), OptionError, "avg", "mean"),
    case("a learning rate", lambda: SGD([variable(1)], lr=-0.1), OptionError, "SGD", "lr", "-0.1"),
    case("betas", lambda: Adam([variable(1)], betas=(0.9, 1.0)), OptionError, "Adam", "beta2"),
    case("no parameters", lambda: SGD([]), OptionError, "SGD", "no parameters"),
    case("a probability", lambda: Dropout(1.5), OptionError, "Dropout", "1.5"),
    case("a batch size", lambda: DataLoader(np.ones(3), batch_size=0), OptionError, "batch_size", "0"),
    case("a step size", lambda: StepLR(SGD([variable(1)]), step_size=0), OptionError, "step_size"),
    case("a static argument", lambda: tg.jit(lambda x: x, static_argnames="k"), OptionError, "k"),
    case("a seed", lambda: tg.manual_seed(-1), OptionError, "-1"),
    case("a data set", lambda: load("iris"), OptionError, "iris", "digits"),
    case("samples", lambda: quadrants(0), OptionError, "samples", "0"),
    case("a backend", lambda: run_kernel(first_kernel(), np.ones(2), backend="c"), OptionError, "backend"),  # type: ignore[arg-type]
]

TRACING = [
    case("a branch on a value", branch_on_a_value, TracingError, "tg.where", "static_argnames"),
    case("float of a value", lambda: tg.jit(lambda x: float(x.sum()))(ones(2)), TracingError, "return it"),
    case("a Tensor that escaped", keep_a_traced_tensor, TracingError, "return it"),
]


def first_kernel() -> Any:
    return tg.explain(tg.jit(lambda x: x + 1), np.ones(2, "f")).kernels[0]


@pytest.mark.parametrize("wrong", [*SHAPES, *AXES, *DTYPES, *GRADIENTS, *IN_PLACE, *VALUES, *EMPTY, *OPTIONS, *TRACING])
def test_wrong_input_gives_one_clear_exception_on_the_users_line(wrong: Case) -> None:
    with pytest.raises(wrong.error) as caught:
        wrong.run()
    message = str(caught.value)
    for part in wrong.says:
        assert part in message, f"{part!r} is not in: {message}"
    assert "test_errors.py" in message, message
    assert type(caught.value).__module__ == errors.__name__
    assert caught.value.__cause__ is None


class TestFiles:
    def test_missing_mnist_files_are_named(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"(?s)train-images-idx3-ubyte.*test_errors\.py"):
            mnist(tmp_path)

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"not an IDX file",
            gzip.compress(b"\0\0\x08\x03" + bytes(12))[:-4],
            b"\0\0\x08\x03\0\0\0\x09" + bytes(8),
        ],
        ids=["empty", "text", "truncated", "too-short"],
    )
    def test_damaged_mnist_files_are_named(self, content: bytes, tmp_path: Path) -> None:
        for kind in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
            (tmp_path / f"{kind}-ubyte.gz").write_bytes(content)
        with pytest.raises(DataError, match=r"(?s)train-images-idx3-ubyte.*test_errors\.py"):
            mnist(tmp_path)

    @pytest.mark.parametrize("damage", ["missing", "empty", "text", "truncated", "a single array"])
    def test_a_broken_weights_file_leaves_the_model_as_it_was(self, damage: str, tmp_path: Path) -> None:
        model, path = Linear(3, 2), tmp_path / "weights.npz"
        if damage == "truncated":
            path.write_bytes(save_weights(path, Linear(3, 2)).read_bytes()[:-40])
        elif damage == "a single array":
            with path.open("wb") as file:
                np.save(file, np.ones(3))
        elif damage != "missing":
            path.write_bytes(b"weights" if damage == "text" else b"")
        before = model.state_dict()
        with pytest.raises(DataError, match=r"(?s)load_weights.*weights\.npz.*test_errors\.py"):
            load_weights(path, model)
        for name, value in model.state_dict().items():
            np.testing.assert_array_equal(value, before[name])

    def test_weights_of_another_model_leave_this_one_as_it_was(self, tmp_path: Path) -> None:
        path = save_weights(tmp_path / "weights.npz", MLP(3, [4], 2))
        for model, says in ((MLP(3, [5], 2), r"\(4, 3\).*\(5, 3\)"), (Linear(3, 2), "missing weight")):
            before = model.state_dict()
            with pytest.raises(StateError, match=says):
                load_weights(path, model)
            for name, value in model.state_dict().items():
                np.testing.assert_array_equal(value, before[name])

    def test_weights_that_cannot_be_written_leave_the_old_ones(self, tmp_path: Path) -> None:
        path = save_weights(tmp_path / "weights.npz", Linear(3, 2))
        before = path.read_bytes()

        class Broken(Linear):
            def state_dict(self) -> dict[str, np.ndarray]:
                raise MemoryError

        with pytest.raises(MemoryError):
            save_weights(path, Broken(3, 2))
        assert path.read_bytes() == before
        assert os.listdir(tmp_path) == ["weights.npz"]

    def test_optimizer_state_of_another_optimizer_is_refused(self) -> None:
        model = Linear(3, 2)
        optimizer = Adam(model.parameters())
        with pytest.raises(StateError, match="exp_avg"):
            optimizer.load_state_dict(SGD(model.parameters()).state_dict())
        assert optimizer.lr == 1e-3

    def test_a_broken_cache_file_is_compiled_anew(self, empty_cache: Path) -> None:
        def f(x: tg.Tensor) -> tg.Tensor:
            return tg.cos(x) * 0.98765

        assert tg.jit(f)(np.zeros(2, "f")).tolist() == pytest.approx([0.98765] * 2)
        files = [path for path in empty_cache.rglob("*") if path.is_file()]
        assert files
        for path in files:
            path.write_bytes(path.read_bytes()[:100])
        again = tg.jit(f)
        assert again(np.zeros(2, "f")).tolist() == pytest.approx([0.98765] * 2)
        assert again.compiles == 1

    def test_a_switch_that_is_no_number_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TAPEGRAD_NUM_THREADS", "many")
        with pytest.raises(OptionError, match="TAPEGRAD_NUM_THREADS.*many"):
            tg.config.num_threads()


class TestNothingIsLost:
    def test_a_scan_keeps_the_steps_before_the_one_that_failed(self) -> None:
        p = variable(2)
        optimizer = SGD([p], lr=1.0)

        @tg.jit
        def step(y: tg.Tensor) -> tg.Tensor:
            loss = cross_entropy(p.reshape(1, 2), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss

        labels = np.array([[0], [1], [0], [7], [0]])
        start = p.numpy()
        step.scan(labels[:3])
        expected = p.numpy()
        with tg.no_grad():
            p.data = start
        with pytest.raises(BoundsError, match="label"):
            step.scan(labels)
        np.testing.assert_array_equal(p.numpy(), expected)

    def test_an_exception_in_a_trace_leaves_gradients_and_parameters(self) -> None:
        p = variable(2)
        p.grad = np.ones(2)

        @tg.jit
        def step(x: tg.Tensor) -> None:
            p.grad = None
            (p * x).sum().backward()
            p.data -= 1
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            step(ones(2))
        assert p.tolist() == [1, 1] and p.grad is not None and p.grad.tolist() == [1, 1]
        assert (p * 2).tolist() == [2, 2]

    def test_a_failed_define_by_run_step_leaves_later_steps_right(self) -> None:
        model = MLP(2, [3], 2)
        optimizer = Adam(model.parameters())
        before = model.state_dict()
        loss = cross_entropy(model(ones(1, 2)), [9])
        loss.backward()
        with pytest.raises(BoundsError, match="label"):
            optimizer.step()
        for name, value in model.state_dict().items():
            np.testing.assert_array_equal(value, before[name])
        optimizer.zero_grad()
        cross_entropy(model(ones(1, 2)), [1]).backward()
        optimizer.step()
        assert optimizer.state_dict()["step.0"] == 1


class TestCommandLine:
    def run(self, *words: str, folder: Path) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "tapegrad", *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)

    @pytest.mark.parametrize(
        ("words", "says"),
        [
            (("train", "iris"), "iris"),
            (("train", "xor", "--depth", "3"), "--depth"),
            (("train", "xor", "--epochs", "-1"), "epochs"),
            (("train", "xor", "--hidden", "3,x"), "hidden"),
            (("train", "xor", "--activation", "rulu"), "rulu"),
            (("explain", "nowhere"), "nowhere"),
            (("tain", "xor"), "tain"),
        ],
    )
    def test_an_unknown_word_is_one_line_and_leaves_no_folder(
        self, words: tuple[str, ...], says: str, tmp_path: Path
    ) -> None:
        run = self.run(*words, folder=tmp_path)
        assert run.returncode != 0
        assert says in run.stderr and "Traceback" not in run.stderr
        assert os.listdir(tmp_path) == []

    def test_a_folder_that_holds_something_is_refused_before_training(self, tmp_path: Path) -> None:
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.txt").write_text("years of work")
        run = self.run("train", "xor", "--out", "mine", folder=tmp_path)
        assert run.returncode != 0 and "mine" in run.stderr and "--out" in run.stderr
        assert os.listdir(tmp_path) == ["mine"] and os.listdir(tmp_path / "mine") == ["thesis.txt"]
