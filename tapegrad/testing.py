"""Tools for tests of kernels, counts and gradients; for users too.

Examples
--------
>>> import numpy as np, tapegrad as tg
>>> from tapegrad.testing import assert_compiles, assert_kernels, check_grads, run_kernel
>>> @tg.jit
... def f(x):
...     return tg.exp(x) * 2
>>> x = np.ones(5, np.float32)
>>> kernel = tg.explain(f, x).kernels[0]
>>> bool(np.allclose(run_kernel(kernel, x, backend="numba"), run_kernel(kernel, x, backend="numpy")))
True
>>> assert_kernels(f, 1)
>>> with assert_compiles(0):
...     _ = f(np.ones(7, np.float32))
>>> check_grads(tg.tanh, x, order=2)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np

from tapegrad import transforms
from tapegrad.compiler.program import compile_kernel
from tapegrad.errors import OptionError, TracingError
from tapegrad.explanation import ExplainedKernel
from tapegrad.ir.kernel import Kernel
from tapegrad.jit import Jitted
from tapegrad.recording import as_tensor
from tapegrad.runtime import devices
from tapegrad.runtime.counters import counters
from tapegrad.runtime.interpreter import interpret
from tapegrad.tensor import Tensor


def run_kernel(
    kernel: Kernel | ExplainedKernel, *arrays: Any, backend: Literal["numpy", "numba", "cuda"] = "numba"
) -> np.ndarray | tuple[np.ndarray, ...]:
    """Run one kernel of a program alone.

    Parameters
    ----------
    kernel : Kernel or ExplainedKernel
        One of ``tg.explain(step, *args).kernels``.
    *arrays : array_like
        What the kernel reads, in the order of ``kernel.reads``.
    backend : {"numba", "numpy", "cuda"}
        The compiled kernel, its meaning in NumPy, or the kernel on the CUDA device.

    Returns
    -------
    ndarray or tuple of ndarray
        What the kernel writes, in the order of ``kernel.writes``. The arrays given are not changed.

    Raises
    ------
    OptionError
        For another backend.
    """
    tree = kernel.kernel if isinstance(kernel, ExplainedKernel) else kernel
    inputs = [
        np.array(array.numpy() if isinstance(array, Tensor) else array, dtype=node.dtype, order="C", copy=True)
        for array, node in zip(arrays, tree.graph.inputs, strict=True)
    ]
    if backend == "numpy":
        results = interpret(tree.graph, inputs)
    elif backend == "numba":
        results = compile_kernel(tree).run(inputs)
    elif backend == "cuda":
        results = [devices.to_host(array) for array in compile_kernel(tree, device=devices.device("cuda")).run(inputs)]
    else:
        raise OptionError(f"run_kernel: backend must be 'numpy', 'numba' or 'cuda', not {backend!r}")
    return results[0] if len(results) == 1 else tuple(results)


def assert_kernels(step: Jitted, expected: int, *args: Any) -> None:
    """Assert that a jitted function runs as ``expected`` kernels.

    Parameters
    ----------
    step : Jitted
    expected : int
    *args : array_like
        Arguments that choose the program; without them, the program traced last.
    """
    program = step.program(*args)
    if program is None:
        raise TracingError("assert_kernels: the function has not been called yet; give it arguments")
    names = [kernel.name for kernel in program.kernels]
    assert len(names) == expected, f"{len(names)} kernels instead of {expected}: {', '.join(names)}"


@contextmanager
def assert_compiles(expected: int) -> Iterator[None]:
    """Assert that LLVM runs ``expected`` times within the block, in the whole process."""
    before = counters["compiles"]
    yield
    compiled = counters["compiles"] - before
    assert compiled == expected, f"{compiled} programs were compiled instead of {expected}"


def check_grads(
    f: Callable[..., Any], *args: Any, order: int = 2, rtol: float = 1e-6, atol: float = 1e-8, seed: int = 0
) -> None:
    """Assert that the derivatives of ``f`` up to ``order`` are right.

    In float64, along random directions: forward mode against central differences of fourth order, reverse mode
    against forward mode, then the same for the gradient.

    Parameters
    ----------
    f : callable
        From Tensors to one Tensor.
    *args : array_like
        Where to look; converted to float64. Points on a kink of ``f`` fail.
    order : int
    rtol, atol : float
        Tolerances of the first order; each further order has ten times as much.
    seed : int
        Of the random directions.

    Raises
    ------
    AssertionError
        Naming the order and the mode that is wrong.
    """
    generator = np.random.default_rng(seed)
    points = [np.array(as_tensor(argument).numpy(), dtype=np.float64) for argument in args]
    _check(f, points, order, order, rtol, atol, generator)


def _check(
    f: Callable[..., Any],
    points: list[np.ndarray],
    order: int,
    total: int,
    rtol: float,
    atol: float,
    generator: np.random.Generator,
) -> None:
    directions = [generator.standard_normal(point.shape) for point in points]

    def at(step: float) -> np.ndarray:
        return np.asarray(f(*[Tensor(p + step * d) for p, d in zip(points, directions, strict=True)]))

    step = 1e-3
    numeric = (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step)
    place = f"derivative of order {total - order + 1}"
    value, forward = transforms.jvp(f, tuple(points), tuple(directions))
    scale = max(1.0, float(np.max(np.abs(numeric), initial=0.0)))
    np.testing.assert_allclose(
        np.asarray(forward), numeric, rtol=rtol, atol=atol * scale, err_msg=f"{place}: forward mode against differences"
    )
    cotangent = generator.standard_normal(numeric.shape)
    _, pullback = transforms.vjp(f, *points)
    parts = pullback(Tensor(cotangent))
    reverse = sum(float(np.sum(np.asarray(part) * d)) for part, d in zip(parts, directions, strict=True))
    along = float(np.sum(np.asarray(forward) * cotangent))
    np.testing.assert_allclose(
        reverse,
        along,
        rtol=1e-9,
        atol=1e-9 * max(1.0, abs(along)),
        err_msg=f"{place}: reverse mode against forward mode",
    )
    if order > 1:
        inner = Tensor(cotangent)

        def gradient_along(*arguments: Any) -> Any:
            _, pull = transforms.vjp(f, *arguments)
            return sum((part * Tensor(d)).sum() for part, d in zip(pull(inner), directions, strict=True))

        _check(gradient_along, points, order - 1, total, rtol * 10, atol * 10, generator)
