"""The simulated CuPy has nothing that CuPy has not, and refuses what CuPy refuses."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import tapegrad.runtime.gpu
from tests.cudasim import cupy as simulated
from tests.cudasim import cupy_kernels
from tests.cudasim.simulator import SimulatorError

try:
    import cupy as real
except Exception:
    real = None

needs_cupy = pytest.mark.skipif(real is None, reason="CuPy is not installed: pip install 'tapegrad[gpu]'")
X = np.arange(12, dtype=np.float32).reshape(3, 4)
#: What tests use beside CuPy's names.
OWN = {"changed", "memory", "settings", "submit"}
MADE_BY_USERS = {"RawModule", "cuda.Device", "cuda.MemoryPointer", "cuda.Stream"}


def members(fake: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every public name of the simulated CuPy, and of its classes."""
    names = fake.__all__ if inspect.ismodule(fake) else vars(fake)
    for name in names:
        if name.startswith("_") or (not path and name in OWN):
            continue
        value = inspect.getattr_static(fake, name)
        yield f"{path}{name}", value
        if inspect.isclass(value) or isinstance(value, SimpleNamespace):
            yield from members(value, f"{path}{name}.")


def resolve(path: str) -> Any:
    """What CuPy has under a dotted name."""
    found: Any = real
    for name in path.split("."):
        found = getattr(found, name)
    return found


def parameters(function: Any) -> list[str] | None:
    """The names of a function's parameters, those of compiled ones from the first line of their description."""
    try:
        found = inspect.signature(function).parameters.values()
        return [p.name for p in found if p.name != "self" and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    except (TypeError, ValueError):
        first = re.match(r"[\w.]+\((.*)\)", (function.__doc__ or "").split("\n")[0])
        if first is None:
            return None
        words = [re.split("[=]", part)[0].split() for part in re.sub(r"\([^)]*\)", "", first[1]).split(",")]
        return [word[-1] for word in words if word and word[-1] not in ("self", "*", "/")]


NAMES = dict(members(simulated))
CALLED = {
    path: value
    for path, value in NAMES.items()
    if (path in MADE_BY_USERS if inspect.isclass(value) else callable(value))
}


@needs_cupy
class TestCuPyHas:
    def test_many_names_are_compared(self) -> None:
        assert len(NAMES) > 60 and "cuda.Stream.begin_capture" in NAMES

    @pytest.mark.parametrize("path", NAMES)
    def test_every_name(self, path: str) -> None:
        resolve(path)

    @pytest.mark.parametrize("path", CALLED)
    def test_every_parameter(self, path: str) -> None:
        own, its = parameters(CALLED[path]), parameters(resolve(path))
        if its is None or own is None:
            pytest.skip("CuPy does not say what it takes")
        assert [name for name in its if name in own] == own

    def test_what_the_device_calls(self) -> None:
        """Every ``cupy.a.b`` that stands in the source."""
        tree = ast.parse(Path(tapegrad.runtime.gpu.__file__).read_text())
        tree.body += ast.parse((Path(tapegrad.runtime.gpu.__file__).parent / "cuda_errors.py").read_text()).body
        paths = set()
        for node in ast.walk(tree):
            words = ast.unparse(node).split(".") if isinstance(node, ast.Attribute) else []
            if "cupy" in words and all(word.isidentifier() for word in words):
                paths.add(".".join(words[words.index("cupy") + 1 :]))
        assert {"cuda.Stream", "RawModule", "cuda.runtime.memGetInfo"} <= paths
        for path in filter(None, paths):
            resolve(path)

    @pytest.mark.parametrize("path", [path for path, value in NAMES.items() if isinstance(value, int)])
    def test_every_number(self, path: str) -> None:
        assert resolve(path) == NAMES[path]

    def test_errors_of_the_same_kinds(self) -> None:
        for path in ("cuda.runtime.CUDARuntimeError", "cuda.driver.CUDADriverError", "cuda.memory.OutOfMemoryError"):
            fake = NAMES[path]
            assert resolve(path).__mro__[1] is fake.__mro__[1]
        assert real.cuda.runtime.CUDARuntimeError(700).status == 700


@pytest.fixture
def headers() -> Iterator[None]:
    """A machine on which CuPy compiles kernels of its own."""
    with simulated.changed(headers=True):
        yield


@pytest.mark.usefixtures("headers")
class TestArrays:
    def test_are_never_numpys_unasked(self) -> None:
        array = simulated.asarray(X)
        for convert in (np.asarray, np.array, lambda a: np.add(a, 1)):
            with pytest.raises(TypeError, match="Implicit conversion to a NumPy array is not allowed"):
                convert(array)
        with pytest.raises(TypeError, match="Unsupported type"):
            array[...] = X

    def test_are_set_from_equal_arrays_alone(self) -> None:
        array = simulated.empty((3, 4), np.float32)
        with pytest.raises(TypeError, match="float64"):
            array.set(X.astype(np.float64))
        with pytest.raises(ValueError, match="Shape mismatch"):
            array.set(X[:2])
        with pytest.raises(TypeError, match=r"Only numpy.ndarray"):
            array.set([1.0])
        with pytest.raises(RuntimeError, match="non-contiguous"):
            array[:, ::2].set(X[:, ::2])

    def test_views_share_memory(self) -> None:
        array = simulated.asarray(X)
        view = array[1:].reshape(-1)[2:6]
        assert view.data.ptr == array.data.ptr + 6 * 4
        view[...] = 0.0
        np.testing.assert_array_equal(array.get().reshape(-1)[5:11], [5, 0, 0, 0, 0, 10])
        np.testing.assert_array_equal(array.T.get(), array.get().T)
        assert array.view(np.int32).dtype == np.int32

    def test_copies_do_not(self) -> None:
        array = simulated.asarray(X)
        copy = array.T.copy()
        copy[...] = 0.0
        np.testing.assert_array_equal(array.get(), X)
        assert copy.flags.c_contiguous and not array.T.flags.c_contiguous

    def test_begin_at_multiples_of_512_bytes(self) -> None:
        assert all(simulated.empty((n,), np.uint8).data.ptr % 512 == 0 for n in (1, 511, 513))


def test_kernels_of_cupys_own_want_cudas_headers() -> None:
    array = simulated.asarray(X)
    for work in (array.T.get, array.T.copy, lambda: array.fill(1.0), lambda: array.T.reshape(-1)):
        with pytest.raises(SimulatorError, match="CUDA's headers need not be here"):
            work()


class TestKernels:
    @pytest.mark.parametrize(("number", "dtype"), [(True, np.bool_), (3, np.int64), (3.0, np.float64)])
    def test_python_numbers_are_eight_bytes_long(self, number: object, dtype: type) -> None:
        assert type(cupy_kernels._argument(number)) is dtype

    def test_other_arguments_are_refused(self) -> None:
        with pytest.raises(TypeError, match="Unsupported type"):
            cupy_kernels._argument(X)
        with pytest.raises(SimulatorError, match="not C-contiguous"):
            cupy_kernels._argument(simulated.asarray(X).T)

    def test_a_module_has_code_or_a_path(self) -> None:
        with pytest.raises(TypeError, match="Exactly one"):
            simulated.RawModule()


@pytest.mark.usefixtures("headers")
class TestStreams:
    def test_the_default_stream_captures_nothing(self) -> None:
        with pytest.raises(RuntimeError, match="cannot capture on the default"):
            simulated.cuda.Stream.null.begin_capture()

    def test_work_on_another_stream_is_refused_during_a_capture(self) -> None:
        array, stream = simulated.asarray(X), simulated.cuda.Stream(non_blocking=True)
        stream.begin_capture()
        try:
            with pytest.raises(simulated.cuda.runtime.CUDARuntimeError, match="capturing"):
                array[...] = 0.0
        finally:
            stream.end_capture()

    def test_graphs_are_not_made_by_hand(self) -> None:
        with pytest.raises(NotImplementedError):
            simulated.cuda.Graph()
