"""Many steps of a jitted function in few native calls: over stacked slices, or over epochs of shuffled batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tapegrad import placement, pytree, tape
from tapegrad.errors import OptionError, ShapeError
from tapegrad.gathering import take
from tapegrad.primitives import shape_text
from tapegrad.recording import as_tensor, wrap
from tapegrad.runtime import devices
from tapegrad.runtime.devices import CPU
from tapegrad.tensor import Tensor

if TYPE_CHECKING:
    from tapegrad.jit import Jitted
    from tapegrad.specialization import Specialization

#: Row numbers that are drawn for one native call: whole epochs of small data sets run together.
ROWS_DRAWN = 1 << 18

#: Called after each native call with the number of steps that it did and the first result of the last of them.
Progress = Callable[[int, Any], None]


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
    firsts = [_argument(array[0]) for array in arrays]
    args, kwargs = pytree.unflatten(structure, firsts)
    specialization = step._find(firsts, structure, args, kwargs)
    if specialization.carries_gradients:
        # Gradients that accumulate from step to step change hands between calls.
        calls = (
            pytree.unflatten(structure, [_argument(array[index]) for array in arrays])[0] for index in range(steps)
        )
        return _one_by_one(step, specialization, calls)
    outputs = _run(step, specialization, arrays, steps)
    return specialization.finish(_last_gradients(specialization, outputs))


def epochs(
    step: Jitted,
    leaves: Sequence[Any],
    per_step: Sequence[Any],
    *,
    batch_size: int,
    epochs: int,
    shuffle: bool,
    seed: int,
    drop_last: bool,
    first_epoch: int,
    progress: Progress | None,
) -> Any:
    """``step`` on every batch of rows of ``leaves``, epoch after epoch; see `tapegrad.jit.Jitted.epochs`."""
    arrays, vectors = [_array(leaf) for leaf in leaves], [_array(leaf) for leaf in per_step]
    shapes = [array.shape for array in arrays]
    if batch_size < 1 or epochs < 1:
        raise OptionError(f"epochs: batch_size and epochs must be at least 1, but are {batch_size} and {epochs}")
    if not arrays or any(not shape for shape in shapes) or len({shape[0] for shape in shapes}) != 1:
        texts = ", ".join(shape_text(shape) for shape in shapes) or "none"
        raise ShapeError(f"epochs: all arrays need the same number of rows; the shapes are {texts}")
    count = shapes[0][0]
    whole, rest = divmod(count, batch_size)
    rest = 0 if drop_last else rest
    steps = whole + bool(rest)
    if steps == 0:
        raise ShapeError(f"epochs: there is no batch: {count} rows, batch_size {batch_size}")
    if any(not vector.ndim or len(vector) != epochs * steps for vector in vectors):
        raise ShapeError(
            f"epochs: what is given per step needs {epochs * steps} elements: {epochs} epochs of {steps} steps"
        )

    from tapegrad.runtime.cpu import permutations

    # Where all batches are equal, several epochs make one native call.
    together = 1 if rest else max(1, min(epochs, ROWS_DRAWN // count))
    parts: list[list[Any]] = []
    structure: Any = None
    held: dict[int, Any] = {}
    done = 0
    for epoch in range(0, epochs, together):
        draws = range(first_epoch + epoch, first_epoch + min(epoch + together, epochs))
        orders = permutations(seed, draws, count) if shuffle else np.tile(np.arange(count), (len(draws), 1))
        runs = [np.ascontiguousarray(orders[:, : whole * batch_size]).reshape(-1, batch_size)]
        if rest:
            runs.append(np.ascontiguousarray(orders[:, whole * batch_size :]))
        for rows in runs:
            if len(rows):
                slices = [vector[done : done + len(rows)] for vector in vectors]
                result = _rows(step, arrays, rows, slices, not shuffle and len(orders) == 1, progress, held)
                leaves, structure = pytree.flatten(result)
                parts.append(leaves)
                done += len(rows)
    return pytree.unflatten(structure, [_joined(column, epochs, steps) for column in zip(*parts, strict=True)])


def _rows(
    step: Jitted,
    arrays: Sequence[Any],
    rows: np.ndarray,
    vectors: Sequence[Any],
    in_order: bool,
    progress: Progress | None,
    held: dict[int, Any],
) -> Any:
    """The results of one step for each line of ``rows``, stacked.

    ``in_order`` says that the rows are neighbours; ``held`` keeps what was moved to another device, for all epochs.
    """
    steps, size = rows.shape
    examples = (*(_argument(array[:size]) for array in arrays), *(_argument(vector[0]) for vector in vectors))
    leaves, structure = pytree.flatten((examples, {}))
    specialization = step._find(leaves, structure, examples, {})
    if specialization.carries_gradients:
        calls = (
            [*(_taken(array, rows[number]) for array in arrays), *(_argument(vector[number]) for vector in vectors)]
            for number in range(steps)
        )
        return _one_by_one(step, specialization, calls)
    if in_order and specialization.device == CPU:
        start, stop = int(rows[0, 0]), int(rows[-1, -1]) + 1
        batches = [array[start:stop].reshape(steps, size, *array.shape[1:]) for array in arrays]
        outputs = _run(step, specialization, [*batches, *vectors], steps, progress=progress)
    else:
        outputs = _run(step, specialization, [*arrays, *vectors], steps, rows, len(arrays), progress, held)
    return specialization.finish(_last_gradients(specialization, outputs))


def _run(
    step: Jitted,
    specialization: Specialization,
    arrays: Sequence[Any],
    steps: int,
    rows: np.ndarray | None = None,
    gathered: int = 0,
    progress: Progress | None = None,
    held: dict[int, Any] | None = None,
) -> list[Any]:
    """The stacked outputs of steps over slices of ``arrays``, or over rows of the first ``gathered`` of them."""
    numbers = [number for number, _ in specialization.dynamic]
    device = specialization.device
    inputs: list[Any] = []
    for number, argument in specialization.dynamic:
        array = held.get(number) if held is not None else None
        if array is None:
            array = _stacked(arrays[number], argument.dtype, device)
            if held is not None and number < gathered and device != CPU:
                array = held[number] = placement.moved(array, device)
        inputs.append(array)
    inputs += [read() for read in specialization.readers]
    places = {place for place, number in enumerate(numbers) if number < gathered}
    reported = 0

    def between(done: int, outputs: Sequence[Any]) -> None:
        nonlocal reported
        assert progress is not None
        progress(done - reported, placement.on_host(outputs[0][done - 1]) if specialization.returns else None)
        reported = done

    outputs = specialization.program.scan(
        inputs, set(range(len(numbers))) - places, steps, places, rows, between if progress is not None else None
    )
    step._counts["calls"] += steps
    step._counts["kernels"] += steps * specialization.program.kernel_count
    return outputs


def _last_gradients(specialization: Specialization, outputs: Sequence[Any]) -> list[Any]:
    """The outputs, of gradients that are kept only the last."""
    kept = specialization.returns + len(specialization.traced.written)
    return [output if number < kept else _last(output) for number, output in enumerate(outputs)]


def _last(output: Any) -> Any:
    return np.array(output[-1]) if isinstance(output, np.ndarray) else placement.copy(output[-1])


def _one_by_one(step: Jitted, specialization: Specialization, calls: Iterable[Sequence[Any]]) -> Any:
    """The results of single calls, stacked."""
    flat = [pytree.flatten(step(*arguments))[0] for arguments in calls]
    stacked: list[Any] = [
        _joined_values(column, np.stack) if isinstance(column[0], Tensor) else column[0]
        for column in zip(*flat, strict=True)
    ]
    return pytree.unflatten(specialization.traced.structure, stacked)


def _joined(parts: Sequence[Any], epochs: int, steps: int) -> Any:
    """The results of some runs as one, with an axis of epochs and one of steps."""
    if not isinstance(parts[0], Tensor):
        return parts[0]
    shapes = [part._entry.shape[1:] for part in parts]
    if len(set(shapes)) != 1:
        texts = " and ".join(dict.fromkeys(map(shape_text, shapes)))
        raise ShapeError(
            f"epochs: the results of whole and short batches have shapes {texts}, which cannot be stacked; "
            "return a mean, or leave the short batch out with drop_last=True"
        )
    return _joined_values(parts, lambda arrays: np.concatenate(arrays).reshape(epochs, steps, *shapes[0]))


def _joined_values(parts: Sequence[Tensor], join: Callable[[list[np.ndarray]], np.ndarray]) -> Tensor:
    """What NumPy makes of some results, where they lie."""
    array, device = join([part._host_value() for part in parts]), parts[0]._entry.device
    return wrap(tape.leaf(array if device is None else placement.moved(array, device), device))


def _array(leaf: Any) -> Any:
    """The stacked values of one argument; a cell is copied, for the steps may overwrite it."""
    if isinstance(leaf, np.ndarray):
        return leaf
    tensor = as_tensor(leaf)
    return tensor._value() if tensor._storage is None else placement.copy(tensor._value())


def _argument(array: Any) -> Any:
    """A part of an array as an argument of a call: on another device than the CPU, a Tensor."""
    return array if isinstance(array, np.ndarray | np.generic) else wrap(tape.leaf(array, devices.location(array)))


def _taken(array: Any, rows: np.ndarray) -> Any:
    """Some rows of an array as an argument of a call."""
    return _argument(array[rows]) if isinstance(array, np.ndarray) else take(_argument(array), rows, axis=0)


def _stacked(array: Any, dtype: np.dtype | None, device: str) -> Any:
    """The stacked values of one argument as a program of a device takes them."""
    array = placement.on_host(array) if device == CPU else array
    return np.ascontiguousarray(array, dtype=dtype) if type(array) is np.ndarray else array
