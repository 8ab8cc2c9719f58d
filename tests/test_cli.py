"""The command line: what it prints, what it leaves, and how it fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from tapegrad import cli
from tapegrad.models import MLP, load_weights
from tapegrad.models.data import DATASETS, load
from tapegrad.models.runs import DEFAULTS, choose_options, prepare, read_options
from tapegrad.models.training import accuracy, predict
from tapegrad.runtime import cpu

ROOT = Path(__file__).parents[1]
QUICK = ("--hidden", "4", "--epochs", "2")


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cpu, "on_slow_compile", cpu.on_slow_compile)


def run(*arguments: str) -> int:
    """The exit status of the command."""
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    return int(exit_.value.code or 0)


def test_train_ends_with_accuracy_speed_and_the_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "xor", *QUICK) == 0
    *_, scored, speed, folder = capsys.readouterr().out.splitlines()
    assert scored.startswith("test accuracy: 0.") or scored == "test accuracy: 1.0000"
    assert len(scored.split()[-1]) == len("0.9778")
    assert float(speed.removeprefix("steps per second: ").replace(",", "")) > 0
    assert folder == str(Path("runs", "xor-1"))
    assert run("train", "xor", *QUICK) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(Path("runs", "xor-2"))
    assert sorted(path.name for path in Path("runs").iterdir()) == ["xor-1", "xor-2"]


def test_a_run_leaves_weights_pictures_program_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "moons", *QUICK, "--activation", "tanh", "--seed", "3", "--out", "here/moons") == 0
    score = capsys.readouterr().out.splitlines()[-3]
    folder = Path("here", "moons")
    assert {path.name for path in folder.iterdir()} == {
        "accuracy.svg",
        "boundary.svg",
        "history.json",
        "loss.svg",
        "options.json",
        "program.py",
        "weights.npz",
    }
    for picture in folder.glob("*.svg"):
        assert ElementTree.parse(picture).getroot().tag.endswith("svg")
    compile((folder / "program.py").read_text(), "program.py", "exec")
    options = read_options(folder)
    assert (options.dataset, options.hidden, options.activation, options.seed) == ("moons", (4,), "tanh", 3)
    assert len(json.loads((folder / "history.json").read_text())["losses"]) == 2
    model, data = MLP(2, options.hidden, 2, activation=options.activation), load("moons", seed=3)
    load_weights(folder / "weights.npz", model)
    assert score == f"test accuracy: {accuracy(predict(model, data.test_x), data.test_y):.4f}"


@pytest.mark.usefixtures("cuda")
def test_a_run_on_a_gpu_leaves_what_one_on_the_processor_leaves(capsys: pytest.CaptureFixture[str]) -> None:
    for device in ("cpu", "cuda"):
        assert run("train", "xor", *QUICK, "--device", device, "--out", device) == 0
    first, second = (np.load(Path(device, "weights.npz")) for device in ("cpu", "cuda"))
    for key in first:
        np.testing.assert_allclose(first[key], second[key], rtol=1e-5, atol=1e-6)
    assert "__global__" in Path("cuda", "program.cu").read_text()
    capsys.readouterr()
    assert run("explain", "cuda") == 0
    assert "__global__" in capsys.readouterr().out
    assert run("info") == 0
    assert "gpu" in capsys.readouterr().out


def test_the_seed_decides_the_weights() -> None:
    for name in ("a", "b"):
        assert run("train", "xor", *QUICK, "--seed", "7", "--out", name) == 0
    first, second = (np.load(Path(name, "weights.npz")) for name in ("a", "b"))
    for key in first:
        np.testing.assert_array_equal(first[key], second[key])


def test_an_occupied_folder_is_refused_before_anything_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    Path("full").mkdir()
    Path("full", "note.txt").write_text("mine")
    assert run("train", "xor", *QUICK, "--out", "full") == 2
    assert capsys.readouterr() == ("", "tapegrad: full exists and is not an empty folder; choose another --out\n")
    assert [path.name for path in Path("full").iterdir()] == ["note.txt"]
    Path("empty").mkdir()
    assert run("train", "xor", *QUICK, "--out", "empty") == 0
    assert Path("empty", "weights.npz").exists()


def test_a_run_that_fails_leaves_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*arguments: object, **keywords: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tapegrad.models.runs.fit", interrupted)
    assert run("train", "xor", *QUICK) == 130
    assert capsys.readouterr().err.strip() == "tapegrad: interrupted; nothing was written"
    assert not list(Path("runs").iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", "iris"), "'iris' is not one of 'xor', 'quadrants', 'moons', 'digits', 'mnist'"),
        (("train",), "Missing argument"),
        (("train", "xor", "--speed", "3"), "No such option"),
        (("train", "xor", "--activation", "rely"), "'rely' is not one of"),
        (("train", "xor", "--optimizer", "lion"), "'lion' is not one of 'sgd', 'adam', 'adamw', 'rmsprop'"),
        (("train", "xor", "--hidden", "8,x"), "'8,x' is not a list of widths such as 128,64"),
        (("train", "xor", "--hidden", "0"), "'0' is not a list of widths"),
        (("train", "xor", "--epochs", "0"), "0 is not in the range"),
        (("train", "xor", "--lr", "-1"), "-1.0 is not in the range"),
        (("train", "xor", "--batch-size", "none"), "'none' is not a valid integer"),
        (("explain", "iris"), "'iris' is neither a data set"),
        (("explain",), "Missing argument"),
        (("fly",), "No such command 'fly'"),
    ],
)
def test_a_wrong_option_is_one_line_and_status_2(
    arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("tapegrad: ") and error.count("\n") == 1
    assert words in error
    assert not list(Path().iterdir())


def test_missing_data_is_one_line_and_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("data", "mnist").mkdir(parents=True)
    Path("data", "mnist", "train-images-idx3-ubyte").write_bytes(b"broken")
    monkeypatch.setenv("TAPEGRAD_DATA", str(Path("data").absolute()))
    assert run("train", "mnist") == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_explain_prints_every_stage_of_a_data_set_and_of_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("explain", "xor", "--hidden", "4") == 0
    told = capsys.readouterr().out
    for stage in ("tape", "graph, derivatives expanded", "graph, simplified", "kernels", "memory", "program", "flops"):
        assert stage in told
    assert "0.weight" in told
    # The lines that the program comes from are those of the step, not of what called it.
    assert all(line in told for line in ("prediction = model(x)", "value = loss(prediction, y)", "optimizer.step()"))
    assert "core.py" not in told
    assert run("train", "xor", *QUICK, "--out", "run") == 0
    capsys.readouterr()
    assert run("explain", "run") == 0
    assert capsys.readouterr().out.split("program\n-------\n")[1] == told.split("program\n-------\n")[1]
    assert run("explain", "run", "--epochs", "3") == 2


@pytest.mark.parametrize(
    "content", [None, "{", "{}", '{"dataset": "iris", "hidden": [3]}', '{"dataset": "xor", "hidden": 3}']
)
def test_a_folder_that_is_no_run_is_told(content: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    Path("folder").mkdir()
    if content is not None:
        Path("folder", "options.json").write_text(content)
    assert run("explain", "folder") == 1
    assert capsys.readouterr().err.startswith("tapegrad: folder is not the folder of a run (")


def test_cache_lists_and_clears(empty_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("cache") == 0
    assert capsys.readouterr().out == f"0 programs, 0.0 MB in {empty_cache / 'programs'}\n"
    assert run("explain", "xor", "--hidden", "2") == 0
    capsys.readouterr()
    assert run("cache") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 2 and "scheduled_step" in "".join(lines)
    assert run("cache", "--clear") == 0
    assert capsys.readouterr().out.startswith(f"removed {len(lines) - 1} programs")
    assert run("cache") == 0
    assert capsys.readouterr().out.startswith("0 programs")


def test_bench_prints_goals_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    only = ("--only", "regression", "--contenders", "tapegrad", "numpy", "--rounds", "1", "--json", "figures.json")
    assert run("bench", *only) == 0
    assert "| regression | scan, times faster than jax scan |" in capsys.readouterr().out
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert {"tapegrad call", "tapegrad scan", "numpy by hand"} <= set(figures["microseconds"]["regression"])
    assert figures["goals"][0]["limit"] == 2


def test_bench_says_where_the_benchmarks_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli.tapegrad, "__file__", "/nowhere/tapegrad/__init__.py")
    assert run("bench") == 1
    assert "source archive" in capsys.readouterr().err


def test_info_names_versions_threads_and_folders(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TAPEGRAD_NUM_THREADS", "3")
    assert run("info") == 0
    rows = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert rows["numpy"] == np.__version__
    assert rows["threads"] == "3"
    assert rows["cache"] == str(empty_cache / "programs")


def test_a_wrong_switch_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TAPEGRAD_NUM_THREADS", "many")
    assert run("info") == 2
    assert "TAPEGRAD_NUM_THREADS" in capsys.readouterr().err


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "--help") == 0
    assert "--batch-size" in capsys.readouterr().out
    assert run() == 0
    assert "explain" in capsys.readouterr().out
    assert run("--version") == 0
    assert capsys.readouterr().out.startswith("tapegrad, version ")


def test_a_compile_that_takes_long_is_announced(capsys: pytest.CaptureFixture[str]) -> None:
    run("info")
    cpu.on_slow_compile("step")
    assert capsys.readouterr().err == "tapegrad: compiling step ...\n"


def test_every_data_set_has_defaults_and_sgd_a_rate_of_its_own() -> None:
    assert DEFAULTS.keys() == DATASETS.keys()
    assert choose_options("digits", optimizer="sgd").lr > choose_options("digits").lr
    assert choose_options("digits", optimizer="sgd", lr=1e-4).lr == 1e-4
    setup = prepare(choose_options("xor", hidden=(), optimizer="rmsprop"))
    assert len(setup.model) == 1 and type(setup.optimizer).__name__ == "RMSprop"


def test_the_module_is_the_command_and_a_closed_pipe_is_no_traceback() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tapegrad"]
    done = subprocess.run([*command, "train", "nothing"], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    with subprocess.Popen(
        [*command, "info"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""


@pytest.mark.parametrize("dataset", ["xor", "quadrants", "moons", "digits"])
def test_defaults_reach_their_accuracy(dataset: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", dataset) == 0
    score = float(capsys.readouterr().out.splitlines()[-3].removeprefix("test accuracy: "))
    assert score >= {"xor": 0.98, "quadrants": 0.93, "moons": 0.95, "digits": 0.97}[dataset]
