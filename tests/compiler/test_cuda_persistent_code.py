"""The source and machine code of kernels that run many training steps: barriers, registers, what lies where."""

from __future__ import annotations

import re

import pytest

from tapegrad.compiler.cuda_persistent import Mode
from tapegrad.compiler.cuda_phases import block_steps, program_phases
from tapegrad.runtime import nvrtc
from tests.compiler.test_cuda_golden import GOLDEN, compare
from tests.compiler.test_cuda_persistent import printed
from tests.compiler.test_cuda_training import WORKLOADS, training

#: Barriers of a step: as many as the longest chain of steps that need each other, less one where the last ones of a
#: step may run beside the first ones of the next.
BARRIERS = {"xor": 6, "digits": 7, "adam": 10, "momentum": 4}
GRID_BARRIERS = {"xor": 5, "digits": 7, "adam": 10, "momentum": 4}


def text_of(name: str, mode: Mode, in_warp: bool = False) -> str:
    """The functions and the kernel, without the prelude."""
    source = printed(name, mode, True, in_warp=in_warp)[2].source
    return source[source.rindex("\n// ", 0, source.index("_step(")) + 1 :]


@pytest.mark.parametrize("name", WORKLOADS)
def test_barriers_of_a_step(name: str) -> None:
    kernels = training(name)[1]
    groups = program_phases(kernels, block_steps(kernels)).groups
    assert len(groups) == BARRIERS[name]
    loop = text_of(name, "grid").split("++step) {")[1]
    assert loop.count("GRID_BARRIER(barrier);") == GRID_BARRIERS[name]


def test_one_warp_needs_one_barrier_a_step() -> None:
    loop = text_of("xor", "block", in_warp=True).split("++step) {")[1]
    assert loop.count("__syncwarp();") == 1
    assert "__syncthreads" not in loop


def test_what_does_not_fit_stays_in_global_memory_largest_first() -> None:
    program, inside, _ = printed("digits", "block", True)
    assert inside == frozenset(program.uses)
    symbols = program.values({name: 300 for name in training("digits")[0].symbols()})
    less = program.inside(symbols, 180_000)
    assert [buffer.name for buffer in program.uses if buffer not in less] == ["x"]
    assert program.shared_bytes(less, symbols) <= 180_000 < program.shared_bytes(inside, symbols)


def test_the_kernel_of_digits_is_as_it_was(pytestconfig: pytest.Config) -> None:
    text = text_of("digits", "block")
    text = text[text.index('extern "C"') :]
    compare(GOLDEN / "persistent_digits.cu", text, pytestconfig.getoption("--update-golden"))


def test_the_source_of_one_warp_is_as_it_was(pytestconfig: pytest.Config) -> None:
    text = text_of("xor", "block", in_warp=True)
    compare(GOLDEN / "persistent_xor.cu", text, pytestconfig.getoption("--update-golden"))


@pytest.mark.nvrtc
@pytest.mark.skipif(nvrtc.library() is None, reason="NVRTC is not installed: pip install nvidia-cuda-nvrtc")
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize(
    ("name", "mode", "in_warp"),
    [("xor", "block", True), ("digits", "block", False), ("adam", "block", False), ("digits", "grid", False)],
)
def test_machine_code_has_no_warning_and_no_spill(name: str, mode: Mode, in_warp: bool, architecture: str) -> None:
    kernel = printed(name, mode, True, in_warp=in_warp)[2]
    log = nvrtc.compile_source(kernel.source, architecture, ["--ptxas-options=-v"]).log
    assert "warning" not in log and "error" not in log
    assert " 0 bytes spill stores, 0 bytes spill loads" in log
    (registers,) = re.findall(r"Used (\d+) registers", log)
    assert int(registers) * kernel.threads <= 65_536
