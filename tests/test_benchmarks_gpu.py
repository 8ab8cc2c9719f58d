"""The commands for a machine with a GPU, as far as they run without one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tapegrad.errors import DeviceError
from tests import sanitize
from tests.benchmarks import gpu, gpu_kernels, gpu_steps
from tests.cudasim.simulator import available


def figures() -> dict[str, float]:
    """What a run on a fast GPU might give."""
    found = {
        goal.work + ", " + way + ", share of copy": 0.95 for goal in gpu.goals({}) for way in ("forward", "backward")
    }
    for workload in gpu_steps.WORKLOADS:
        found |= {f"{workload.name}, {way}": 0.5 for way in ("tapegrad", "tapegrad graph", "tapegrad block")}
        found |= {f"{workload.name}, jax scan": 5.0, f"{workload.name}, torch eager": 300.0}
    return found | {"wide, tapegrad": 1050.0, "wide, bare products": 1000.0, "copy, GB/s": 4000.0}


def test_every_goal_has_its_figure() -> None:
    goals = gpu.goals(figures())
    assert all(goal.met for goal in goals), [goal for goal in goals if not goal.met]
    assert {goal.met for goal in gpu.goals({})} == {None}


def test_a_goal_is_met_against_the_best_peer() -> None:
    slow = figures() | {"mnist, jax scan": 1.0}
    faster = [goal for goal in gpu.goals(slow) if goal.measure.startswith("times faster")]
    assert {goal.work: goal.value for goal in faster} == {"xor": 10, "quadrants": 10, "digits": 10, "mnist": 2}


def test_a_way_that_was_not_measured_is_a_dash() -> None:
    table = gpu.steps_table({"xor, tapegrad": 0.5, "mnist, tapegrad": 12.0, "copy, GB/s": 1.0})
    assert table.splitlines()[2:] == ["| tapegrad | 0.5 | - | - | 12 |"]


def test_the_page_has_the_goals_and_says_whether_they_were_measured() -> None:
    page = gpu.PAGE.read_text(encoding="utf-8")
    between = page.split(gpu.BEGIN)[1].split(gpu.END)[0]
    assert between == f"\n{gpu.unmeasured()}\n" or between.startswith("\nOne run of `python -m tests.benchmarks.gpu`")


def test_a_run_is_written_to_the_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{gpu.BEGIN}\nold\n\n{gpu.END}after\n")
    results = gpu.Results(figures(), ["jax is not installed", "jax is not installed"])
    gpu.write_page(gpu.report("One run.", results), page)
    text = page.read_text()
    assert text.startswith(f"before\n{gpu.BEGIN}\nOne run.\n\n| work |") and text.endswith(f"{gpu.END}after\n")
    assert "old" not in text and text.count("- jax is not installed") == 1
    gpu.write_page("new\n", page)
    assert page.read_text() == f"before\n{gpu.BEGIN}\nnew\n\n{gpu.END}after\n"


def test_parts_that_fail_or_take_too_long_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    results = gpu.each_alone(["launches"], 10)
    assert results.figures == {} and results.notes == ["launches: it ended with status 1: no message"]


def test_a_figure_that_was_written_before_a_part_ended_stays(tmp_path: Path) -> None:
    results = gpu.Results()
    (tmp_path / "part").write_text('{"name": "xor, tapegrad", "value": 0.5}\n{"note": "the rest"}\n')
    results.read(tmp_path / "part")
    results.read(tmp_path / "missing")
    assert results == gpu.Results({"xor, tapegrad": 0.5}, ["the rest"])


@pytest.mark.slow
@pytest.mark.simulated
@pytest.mark.skipif(not available(), reason="there is no g++ to compile CUDA C for the CPU")
def test_our_own_parts_run_on_the_simulated_device(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(gpu_steps, "WORKLOADS", gpu_steps.WORKLOADS[:1])
    monkeypatch.setattr(gpu_kernels, "SHARES", {"softmax": 0.9})
    path = tmp_path / "figures.json"
    assert gpu.main(["--simulated", "--json", str(path)]) == 0
    assert "these times mean nothing" in capsys.readouterr().out
    written = json.loads(path.read_text())
    assert set(written["figures"]) == {
        *("RawKernel launch, us", "graph node, us", "grid barrier, us", "copy, GB/s"),
        *("softmax, forward, share of copy", "softmax, backward, share of copy"),
        *("xor, tapegrad", "xor, tapegrad call", *(f"xor, tapegrad {mode}" for mode in gpu_steps.MODES)),
        *("wide, tapegrad", "wide, bare products"),
    }
    assert written["notes"] == []


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def no_gpu() -> str:
        raise DeviceError("no GPU")

    monkeypatch.setattr(gpu, "describe_machine", no_gpu)
    assert gpu.main([]) == 2
    assert "There is no GPU to measure: no GPU" in capsys.readouterr().err


class TestSanitizer:
    def test_is_found_in_the_wheel_before_the_path(self, tmp_path: Path) -> None:
        folder = tmp_path / "nvidia" / "cu13" / "compute-sanitizer"
        folder.mkdir(parents=True)
        (folder / "compute-sanitizer").touch(mode=0o755)
        assert sanitize.find([str(tmp_path)]) == str(folder / "compute-sanitizer")
        assert sanitize.find([], path=str(folder)) == str(folder / "compute-sanitizer")
        assert sanitize.find([], path="") is None

    def test_where_it_is_missing_the_command_says_what_brings_it(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(sanitize, "find", lambda folders: None)
        assert sanitize.main([]) == 2
        assert "pip install nvidia-cuda-sanitizer-api" in capsys.readouterr().err

    def test_runs_the_tests_for_a_gpu_alone_in_one_process(self) -> None:
        words = sanitize.command("compute-sanitizer", "racecheck", ["tests/runtime"])
        assert words[:2] == ["compute-sanitizer", "--tool=racecheck"] and words[-1] == "tests/runtime"
        assert words[words.index("-m", words.index("pytest")) + 1] == "gpu" and "-n" in words
