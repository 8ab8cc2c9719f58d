"""Threads: trainings beside each other, and a training beside a busy neighbour."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

import tapegrad as tg

from .contenders import tapegrad_step
from .goals import Goal
from .workloads import WORKLOADS, Workload

TRAININGS = 8
SMALL = Workload("digits", (64, 100, 10), "relu", "cross_entropy", 32, 0.05, steps=2000)


def _median(run: Callable[[], Any], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def independent_trainings(rounds: int) -> float:
    """How many times faster eight trainings are in as many threads as there are cores than one after another."""
    steps = [tapegrad_step(SMALL)[0] for _ in range(TRAININGS)]
    xs, ys = SMALL.batches()

    def train(step: Any) -> None:
        step.scan(xs, ys)

    for step in steps:
        train(step)
    with ThreadPoolExecutor(tg.get_num_threads()) as pool:
        together = _median(lambda: list(pool.map(train, steps)), rounds)
    with tg.num_threads(1):
        alone = _median(lambda: [train(step) for step in steps], rounds)
    return alone / together


def beside_a_neighbour(rounds: int) -> float:
    """The time of a step of mnist beside a busy process, in times of a step on one thread of a quiet machine."""
    workload = next(workload for workload in WORKLOADS if workload.name == "mnist")
    step, _ = tapegrad_step(workload)
    xs, ys = workload.batches()

    def train() -> None:
        step.scan(xs, ys)

    train()
    with tg.num_threads(1):
        alone = _median(train, rounds)
    neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.2)
        disturbed = _median(train, rounds)
    finally:
        neighbour.kill()
        neighbour.wait()
    return disturbed / alone


def run(rounds: int) -> list[Goal]:
    """Both, against their goals."""
    trainings, neighbour = independent_trainings(rounds), beside_a_neighbour(rounds)
    return [
        Goal("threads", "eight trainings of 64-100-10, times faster in threads", trainings, "at least", 1.7),
        Goal("threads", "mnist step beside a busy process, of its time on one thread", neighbour, "at most", 1.3),
    ]
