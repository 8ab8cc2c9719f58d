"""Whole training steps as CUDA C: on the simulated device as on the CPU, and compiled for GPUs."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from tapegrad.compiler.cuda_launches import kernel_launches
from tapegrad.compiler.cuda_source import cuda_source
from tapegrad.compiler.fuse import schedule
from tapegrad.compiler.simplify import simplify
from tapegrad.ir.graph import Graph
from tapegrad.ir.kernel import Schedule
from tapegrad.runtime import nvrtc
from tapegrad.runtime.interpreter import interpret
from tests.benchmarks.contenders import tapegrad_step
from tests.benchmarks.workloads import Workload
from tests.cudasim.kernels import run_schedule
from tests.cudasim.simulator import available

WORKLOADS = {
    "xor": Workload("xor", (2, 3, 3, 1), "tanh", "sse", 4, 0.1, steps=3),
    "digits": Workload("digits", (64, 20, 10), "relu", "cross_entropy", 33, 0.05, weight_decay=1e-3, steps=3),
    "adam": Workload("adam", (30, 40, 12, 10), "relu", "cross_entropy", 40, 1e-3, optimizer="adam", steps=3),
    "momentum": Workload("momentum", (10, 70, 1), "relu", "mse", 65, 0.01, momentum=0.9, steps=3),
}


#: How often a step meets the launcher.
LAUNCHES = {"xor": 2, "digits": 8, "adam": 12, "momentum": 6}


def training(name: str) -> tuple[Graph, Schedule, list[np.ndarray], np.ndarray, np.ndarray]:
    """The graph of a step and its kernels for a GPU, what the step starts from, and batches."""
    return training_of(WORKLOADS[name])


@cache
def training_of(workload: Workload) -> tuple[Graph, Schedule, list[np.ndarray], np.ndarray, np.ndarray]:
    """The same for any workload."""
    step, _ = tapegrad_step(workload)
    xs, ys = workload.batches()
    step(xs[0], ys[0])
    program = step.program()
    assert program is not None
    captured = [np.array(array) for array in step.explain(xs[0], ys[0]).inputs[2:]]
    return program.graph, schedule(simplify(program.graph), panels=False), captured, xs, ys


@pytest.mark.parametrize("name", WORKLOADS)
class TestTraining:
    pytestmark = [
        pytest.mark.simulated,
        pytest.mark.skipif(not available(), reason="there is no g++ to compile CUDA C for the CPU"),
    ]

    def test_goes_the_way_of_the_reference(self, name: str) -> None:
        graph, kernels, captured, xs, ys = training(name)
        states = [[array.copy() for array in captured] for _ in range(2)]
        for x, y in zip(xs, ys, strict=True):
            losses = []
            for state, run in zip(states, (run_schedule, None), strict=True):
                given = [x, y, *state]
                outputs = run(kernels, given)[0] if run else interpret(graph, [a.copy() for a in given])
                for output, cell in graph.writes:
                    state[cell - 2] = outputs[output]
                losses.append(float(outputs[0]))
            assert losses[0] == pytest.approx(losses[1], rel=1e-5)
        for simulated, expected in zip(*states, strict=True):
            np.testing.assert_allclose(simulated, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_step_is_few_launches(name: str) -> None:
    launches = [launch for kernel in training(name)[1].kernels for launch in kernel_launches(kernel)]
    assert sum(launch.route in (None, "direct") for launch in launches) == LAUNCHES[name]


@pytest.mark.nvrtc
@pytest.mark.skipif(nvrtc.library() is None, reason="NVRTC is not installed: pip install nvidia-cuda-nvrtc")
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize("name", WORKLOADS)
def test_compiles_for_gpus_without_a_warning_or_a_spill(name: str, architecture: str) -> None:
    source = cuda_source(training(name)[1].kernels)
    compiled = nvrtc.compile_source(source, architecture, ["--ptxas-options=-v", "--ptxas-options=--warn-on-spills"])
    assert len(compiled.cubin) > 1000
    assert "warning" not in compiled.log and "error" not in compiled.log
    assert compiled.log.count(" 0 bytes spill stores, 0 bytes spill loads") >= source.count('extern "C"')
