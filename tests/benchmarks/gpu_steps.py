"""Training steps on a GPU: tapegrad in each of its modes, PyTorch eager and compiled, JAX call by call and in a scan.

All train the same networks from the same weights on the same batches, which lie on the GPU; every loss is read at the
end of the timed block. A way whose losses differ from those of NumPy by hand by more than rounding is left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

import tapegrad as tg
from tapegrad.errors import TapegradError
from tapegrad.runtime import devices

from . import contenders
from .contenders import Way
from .gpu_kernels import bare_products
from .gpu_scale import Scale
from .steps import alike
from .workloads import Workload

WORKLOADS = (
    Workload("xor", (2, 3, 3, 1), "tanh", "sse", 4, 0.1, steps=4000),
    Workload("quadrants", (2, 64, 64, 2), "relu", "cross_entropy", 32, 0.05, steps=2000),
    Workload("digits", (64, 100, 10), "relu", "cross_entropy", 32, 0.05, steps=2000),
    Workload("mnist", (784, 128, 10), "relu", "cross_entropy", 64, 0.1, steps=500),
)
#: Ways of running the steps of a scan; None is the compiler's own choice.
MODES = ("launches", "graph", "block", "grid")
CHOSEN = "tapegrad"

#: Says why a way is left out.
Note = Callable[[str], None]


def tapegrad_ways(workload: Workload, note: Note) -> dict[str, Way]:
    """A scan in the mode that the compiler chooses and in each that can be forced, and a call a step."""
    ways: dict[str, Way] = {}
    xs, ys = (tg.Tensor(part, device="cuda") for part in workload.batches())
    batches = [(xs[n], ys[n]) for n in range(workload.steps)]
    for mode in (None, *MODES):
        label = f"{CHOSEN} {mode}" if mode else CHOSEN
        with tg.default_device("cuda"):
            step, reset = contenders.tapegrad_step(workload, jitted=False)
        jitted = tg.jit(cuda_mode=mode)(step) if mode else tg.jit(step)
        ways[label] = Way(_on_gpu(reset), lambda _, jitted=jitted: jitted.scan(xs, ys).numpy())
        if mode is None:
            ways[f"{CHOSEN} call"] = Way(_on_gpu(reset), lambda _, jitted=jitted: _called(jitted, batches))
    return ways


def _on_gpu(reset: Callable[[], None]) -> Callable[[], None]:
    """Give a model its first weights again, on the GPU."""

    def start() -> None:
        with tg.default_device("cuda"):
            reset()
        devices.device("cuda").synchronize()

    return start


def _called(jitted: Any, batches: list[tuple[Any, Any]]) -> np.ndarray:
    return tg.stack([jitted(x, y) for x, y in batches]).numpy()


def torch_ways(workload: Workload, note: Note, place: str = "cuda") -> dict[str, Way]:
    """PyTorch, eager and compiled in two modes: loss and its gradient as one, the optimizer's step as another."""
    import torch

    if place == "cuda" and not torch.cuda.is_available():
        note("torch: this build has no CUDA")
        return {}
    workload = replace(workload, steps=min(workload.steps, 300))
    xs, ys = (torch.from_numpy(part).to(place) for part in workload.batches())
    functional = torch.nn.functional

    def loss_of(parameters: list[Any], x: Any, y: Any) -> Any:
        for layer in range(0, len(parameters), 2):
            x = functional.linear(x, parameters[layer], parameters[layer + 1])
            if workload.activation == "tanh":
                x = torch.tanh(x)
            elif layer < len(parameters) - 2:
                x = torch.relu(x)
        if workload.loss == "cross_entropy":
            return functional.cross_entropy(x, y)
        return functional.mse_loss(x, y, reduction="sum" if workload.loss == "sse" else "mean")

    def way(mode: str | None) -> Way:
        compiled = torch.compile(loss_of, mode=mode) if mode else loss_of
        parameters = [torch.tensor(p, device=place, requires_grad=True) for p in workload.weights()]
        optimizer = torch.optim.SGD(parameters, lr=workload.lr)
        update = torch.compile(optimizer.step) if mode else optimizer.step

        def start() -> None:
            with torch.no_grad():
                for parameter, value in zip(parameters, workload.weights(), strict=True):
                    parameter.copy_(torch.from_numpy(value))

        def run(_: None) -> np.ndarray:
            losses = []
            for x, y in zip(xs, ys, strict=True):
                if mode:
                    torch.compiler.cudagraph_mark_step_begin()
                loss = compiled(parameters, x, y)
                optimizer.zero_grad()
                loss.backward()
                update()
                # A CUDA graph writes the next loss to the same place.
                losses.append(loss.detach().clone())
            return torch.stack(losses).cpu().numpy()

        return Way(start, run)

    modes = {"eager": None, "compile, reduce-overhead": "reduce-overhead", "compile, max-autotune": "max-autotune"}
    return {f"torch {label}": way(mode) for label, mode in modes.items()}


def jax_ways(workload: Workload, note: Note, place: str = "cuda") -> dict[str, Way]:
    """JAX: jit a call, and a scan, both with true float32 products."""
    import jax

    if place == "cuda" and jax.default_backend() != "gpu":
        note("jax: this build has no CUDA; pip install 'jax[cuda13]'")
        return {}
    jax.config.update("jax_default_matmul_precision", "highest")
    return {f"jax {kind}": way for kind, way in contenders.jax(workload, read_each=False).items()}


PEERS: dict[str, Callable[..., dict[str, Way]]] = {"torch": torch_ways, "jax": jax_ways}


def measure(ways: Callable[[Workload, Note], dict[str, Way]], scale: Scale, note: Note) -> Iterator[tuple[str, float]]:
    """Median microseconds a step of each way, workload by workload."""
    for workload in map(scale.workload, WORKLOADS):
        by_hand = contenders.CONTENDERS["numpy"](workload)["by hand"]
        expected = by_hand.run(by_hand.start())
        for label, way in ways(workload, note).items():
            try:
                losses = way.run(way.start())  # compiles, warms up
                way.run(way.start())
            except TapegradError as error:
                note(f"{workload.name}, {label}: {error.message}")
                continue
            if not alike(losses, expected[: len(losses)]):
                note(f"{workload.name}, {label} trains differently: {losses[-1]} against {expected[len(losses) - 1]}")
                continue
            times = []
            for _ in range(scale.rounds):
                state = way.start()
                start = time.perf_counter()
                way.run(state)
                times.append((time.perf_counter() - start) / len(losses) * 1e6)
            yield f"{workload.name}, {label}", float(np.median(times))


def wide(scale: Scale, note: Note) -> Iterator[tuple[str, float]]:
    """A step of an MLP of three wide layers, as multiples of its bare matrix products by cuBLAS."""
    sizes = (scale.width,) * 4
    workload = Workload("wide", sizes, "relu", "mse", scale.rows, 1e-3, steps=scale.steps or 20)
    device = devices.device("cuda")
    with tg.default_device("cuda"):
        step, reset = contenders.tapegrad_step(workload, jitted=False)
    xs, ys = (tg.Tensor(part, device="cuda") for part in workload.batches())
    jitted, times = tg.jit(step), []
    for _ in range(scale.rounds + 2):
        _on_gpu(reset)()
        start = time.perf_counter()
        jitted.scan(xs, ys).numpy()
        times.append((time.perf_counter() - start) / workload.steps)
    products = bare_products(device, workload.products(), scale)
    yield "wide, tapegrad", float(np.median(times[2:])) * 1e6
    yield "wide, bare products", products * 1e6
