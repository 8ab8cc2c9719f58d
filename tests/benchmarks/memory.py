"""Temporaries of each training step against the least that lifetimes allow."""

from __future__ import annotations

from .contenders import tapegrad_step
from .goals import Goal
from .workloads import WORKLOADS

#: How much larger than the lower bound an arena may be.
LIMIT = 1.1


def run(rounds: int) -> list[Goal]:
    """The arena of every workload's step, as a share of its lower bound; it is counted, in one round."""
    goals = []
    for workload in WORKLOADS:
        step, _ = tapegrad_step(workload)
        xs, ys = workload.batches()
        program = step.program(xs[0], ys[0])
        assert program is not None
        symbols = program.graph.bind([xs[0].shape, ys[0].shape, *[node.shape for node in program.graph.inputs[2:]]])
        assert symbols is not None
        plan = program.plan(symbols)
        share = plan.arena_bytes / plan.lower_bound if plan.lower_bound else 1.0
        measure = f"arena of {workload.name} ({plan.arena_bytes:,} bytes), of the bound that lifetimes give"
        goals.append(Goal("memory", measure, share, "at most", LIMIT))
    return goals
