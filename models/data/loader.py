"""Batches of arrays, shuffled the same way for the same seed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from tapegrad.errors import DTypeError, OptionError, ShapeError
from tapegrad.foreign import readable
from tapegrad.ir.dtypes import is_floating, known
from tapegrad.kernels.cpu import philox
from tapegrad.models.data.dataset import Array


class DataLoader:
    """Iterates over arrays that share their first axis, one batch of rows at a time.

    Each ``for`` loop over a loader is an epoch. With ``shuffle`` every epoch has an order of its own, which is
    drawn by the counter-based generator from the seed and the epoch's number alone.

    Parameters
    ----------
    *arrays : array_like
        Examples, labels and whatever else belongs to a row. Floating ones are cast to ``dtype`` and all others
        to int64, once, here; an array that has that type already is not copied.
    batch_size : int
        Rows in a batch. The last batch of an epoch may be shorter.
    shuffle : bool
        Whether each epoch has a new order.
    seed : int
        Seed of the orders.
    drop_last : bool
        Whether to leave out a last batch that is shorter.
    dtype : dtype
        The type of floating arrays, float32 or float64.

    Attributes
    ----------
    epoch : int
        The number of the next epoch. Set it to go on where another run stopped.

    Raises
    ------
    ShapeError
        If there is no array, an array has no axis, or their first axes differ.
    DTypeError
        If an array holds neither numbers nor bools.
    OptionError
        If ``batch_size`` is less than 1 or ``dtype`` is not floating.

    Examples
    --------
    >>> from tapegrad.models.data import DataLoader
    >>> loader = DataLoader([[0.0], [1.0], [2.0]], [0, 1, 0], batch_size=2)
    >>> len(loader)
    2
    >>> for x, y in loader:
    ...     print(x.tolist(), y.tolist())
    [[0.0], [1.0]] [0, 1]
    [[2.0]] [0]
    """

    def __init__(
        self,
        *arrays: ArrayLike,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        dtype: DTypeLike = np.float32,
    ) -> None:
        if batch_size < 1:
            raise OptionError(f"DataLoader: batch_size must be at least 1, but is {batch_size}")
        if np.dtype(dtype) not in (np.dtype(np.float32), np.dtype(np.float64)):
            raise OptionError(f"DataLoader: dtype must be float32 or float64, not {np.dtype(dtype)}")
        self.arrays = tuple(_cast(array, np.dtype(dtype)) for array in arrays)
        shapes = [array.shape for array in self.arrays]
        if len({shape[:1] for shape in shapes}) != 1 or shapes[0] == ():
            raise ShapeError(f"DataLoader: arrays of shapes {shapes} do not share their first axis")
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.drop_last = drop_last
        self.epoch = 0

    @property
    def rows(self) -> int:
        """The number of rows in all."""
        return len(self.arrays[0])

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        return self.rows // self.batch_size if self.drop_last else -(-self.rows // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Array, ...]]:
        """The batches of the next epoch."""
        epoch, self.epoch = self.epoch, self.epoch + 1
        order = philox.permutation(self.seed, epoch, self.rows) if self.shuffle else None
        return self._batches(order)

    def _batches(self, order: Array | None) -> Iterator[tuple[Array, ...]]:
        """Batches in the given order of rows, or in their own."""
        for number in range(len(self)):
            part = slice(number * self.batch_size, (number + 1) * self.batch_size)
            rows = part if order is None else order[part]
            yield tuple(array[rows] for array in self.arrays)


def _cast(array: ArrayLike, dtype: np.dtype[Any]) -> Array:
    """A contiguous array, floating as ``dtype`` and everything else as int64."""
    values = np.asarray(readable(array))
    if values.dtype.kind not in "fiub" and known(values.dtype) is None:
        raise DTypeError(f"DataLoader: an array of {values.dtype} holds neither numbers nor bools")
    return np.asarray(values, dtype=dtype if is_floating(values.dtype) else np.int64, order="C")
