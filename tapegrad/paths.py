"""Paths: what a thread has recorded since its last run, known by structure while it is being recorded.

Each step of recording - a primitive on operands, a derivative, an update - leads from one `Path` to the next. A step
is told by the path it starts from, what is done, and where the operands stand: the place of one that was recorded since
the last run, or the kind of a leaf that is used for the first time. So the second time the same is recorded, every step
is one look-up, which says shape and dtype of the result without any rule being asked, and the path that is reached
holds the programs of its runs: nothing is walked, hashed or expanded again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tapegrad.ir.dtypes import PRECISIONS
from tapegrad.ir.graph import hashable
from tapegrad.ir.sizes import Shape

if TYPE_CHECKING:
    from tapegrad.errors import Mark
    from tapegrad.tape import Entry

#: Paths remembered; when there are more, all are forgotten and learned again.
REMEMBERED = 100_000

_FLOAT32 = np.dtype(np.float32)


class Path:
    """A point that recording reaches, and what the step to it gives.

    Attributes
    ----------
    primitive, params, shape, dtype, requires_grad, device
        Of the entry that the step records.
    mark : tuple, optional
        The line that recorded it first; None where every entry must have its own, for a run may fail at it.
    order : tuple of int, optional
        Which of the given operands are inputs of the entry; None where all are, as they come.
    owned : dict of int to tuple of int
        For the place of an entry, the places in its history whose owners a backward pass may fill.
    plans : dict
        How to run, for the places of what is wanted; see `tapegrad.execution`. Both are None until there is something.
    """

    __slots__ = ("device", "dtype", "mark", "order", "owned", "params", "plans", "primitive", "requires_grad", "shape")

    def __init__(
        self,
        primitive: str = "",
        params: dict[str, Any] | None = None,
        shape: Shape = (),
        dtype: np.dtype = _FLOAT32,
        requires_grad: bool = False,
        mark: Mark | None = None,
        order: tuple[int, ...] | None = None,
        device: str | None = None,
    ) -> None:
        self.primitive = primitive
        self.params: dict[str, Any] = {} if params is None else params
        self.shape = shape
        self.dtype = dtype
        self.requires_grad = requires_grad
        self.mark = mark
        self.order = order
        self.device = device
        self.owned: dict[int, tuple[int, ...]] | None = None
        self.plans: dict[tuple[int, ...], Any] | None = None


#: Where every tape begins, by the precision of products.
ROOTS = {precision: Path() for precision in PRECISIONS}

#: Every known step, by the path it starts from and what is done.
steps: dict[tuple[Any, ...], Path] = {}


#: Shape and dtype of the result, and whether a gradient reaches it, by primitive, parameters and operands.
rules: dict[tuple[Any, ...], tuple[Shape, np.dtype, bool]] = {}


def learn(key: tuple[Any, ...], path: Path) -> None:
    """Remember where a step leads."""
    if len(steps) >= REMEMBERED:
        forget()
    steps[key] = path


def forget() -> None:
    """Forget every path."""
    steps.clear()
    rules.clear()
    for root in ROOTS.values():
        root.plans = None


def kind(leaf: Entry) -> Any:
    """What a path knows of a leaf: all but its value. The last says that a derivative might pass through it.

    The first case is that of a number, which goes along with any device.
    """
    if not (leaf.shape or leaf.requires_grad or leaf.owner or leaf.inputs or leaf.device):
        return leaf.dtype.char
    return leaf.shape, leaf.dtype.char, leaf.device, leaf.requires_grad, leaf.owner is not None, bool(leaf.inputs)


#: The kind of a Python number that meets a floating Tensor, by its dtype.
NUMBER_KINDS = {dtype: dtype.char for dtype in (_FLOAT32, np.dtype(np.float64))}


def params_key(params: dict[str, Any]) -> tuple[Any, ...]:
    """Static parameters as a part of a key."""
    return tuple(
        [(name, hashable(value) if isinstance(value, float | bool) else value) for name, value in params.items()]
    )
