"""Many steps of a jitted function in one native call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tapegrad import pytree, tape
from tapegrad.errors import ShapeError
from tapegrad.primitives import shape_text
from tapegrad.recording import as_tensor, wrap
from tapegrad.tensor import Tensor

if TYPE_CHECKING:
    from tapegrad.jit import Jitted


def scan(step: Jitted, leaves: list[Any], structure: Any) -> Any:
    """``step`` on every slice of ``leaves`` along their leading axes; see `tapegrad.jit.Jitted.scan`."""
    arrays = [_array(leaf) for leaf in leaves]
    shapes = [array.shape for array in arrays]
    if not arrays or any(not shape for shape in shapes) or len({shape[0] for shape in shapes}) != 1:
        texts = ", ".join(shape_text(shape) for shape in shapes) or "none"
        raise ShapeError(
            f"scan: every argument needs a leading axis of the same length, the steps; the shapes are {texts}"
        )
    steps = shapes[0][0]
    if steps == 0:
        raise ShapeError("scan: there are no steps: the leading axis of the arguments has size 0")
    firsts = [array[0] for array in arrays]
    args, kwargs = pytree.unflatten(structure, firsts)
    specialization = step._find(firsts, structure, args, kwargs)
    traced = specialization.traced
    if specialization.carries_gradients:
        # Gradients that accumulate from step to step change hands between calls.
        results = [step(*pytree.unflatten(structure, [array[index] for array in arrays])[0]) for index in range(steps)]
        flat = [pytree.flatten(result)[0] for result in results]
        stacked: list[Any] = [
            wrap(tape.leaf(np.stack([leaf._value() for leaf in column])))
            if isinstance(column[0], Tensor)
            else column[0]
            for column in zip(*flat, strict=True)
        ]
        return pytree.unflatten(traced.structure, stacked)
    inputs = specialization.inputs(firsts)
    scanned = list(range(len(specialization.dynamic)))
    for place, (number, argument) in enumerate(specialization.dynamic):
        inputs[place] = np.ascontiguousarray(arrays[number], dtype=argument.dtype)
    outputs = specialization.program.scan(inputs, scanned, steps)
    step._counts["calls"] += steps
    step._counts["kernels"] += steps * specialization.program.kernel_count
    kept = specialization.returns + len(traced.written)
    outputs = [output if number < kept else np.array(output[-1]) for number, output in enumerate(outputs)]
    return specialization.finish(outputs)


def _array(leaf: Any) -> np.ndarray:
    """The stacked values of one argument; a cell is copied, for the steps may overwrite it."""
    if isinstance(leaf, np.ndarray):
        return leaf
    tensor = as_tensor(leaf)
    return tensor._value() if tensor._storage is None else tensor._value().copy()
