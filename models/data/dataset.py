"""What every data set is here: four NumPy arrays and the names of the classes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tapegrad.errors import DataError, OptionError, ShapeError

Array = NDArray[Any]


@dataclass(frozen=True)
class Dataset:
    """Rows to train on and rows to test on, as plain NumPy arrays.

    Attributes
    ----------
    name : str
        The name that the command line knows it by.
    train_x, test_x : ndarray of float32, shape (rows, features)
        One example a row.
    train_y, test_y : ndarray, shape (rows,)
        int64 labels from 0 to ``len(classes) - 1``, or float32 targets where ``classes`` is empty.
    classes : tuple of str
        The names of the labels, in their order; empty for a regression.

    Examples
    --------
    >>> from tapegrad.models.data import digits
    >>> data = digits(seed=0)
    >>> data.train_x.shape, data.test_x.shape, len(data.classes)
    ((1437, 64), (360, 64), 10)
    """

    name: str
    train_x: Array
    train_y: Array
    test_x: Array
    test_y: Array
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for part, x, y in (("train", self.train_x, self.train_y), ("test", self.test_x, self.test_y)):
            if len(x) != len(y):
                raise DataError(f"{self.name}: {part}_x has {len(x)} rows and {part}_y has {len(y)}")
        if self.train_x.shape[1:] != self.test_x.shape[1:]:
            raise DataError(f"{self.name}: train_x {self.train_x.shape} and test_x {self.test_x.shape} differ in a row")

    @property
    def features(self) -> int:
        """How many numbers an example has."""
        return math.prod(self.train_x.shape[1:])


def split(
    x: ArrayLike,
    y: ArrayLike,
    *,
    name: str = "data",
    classes: tuple[str, ...] = (),
    test_fraction: float = 0.2,
    seed: int = 0,
) -> Dataset:
    """Divide rows into a part to train on and a part to test on, both shuffled.

    Where ``classes`` are named, the split is stratified: each class gets its share of the test rows, rounded
    by largest remainder.

    Parameters
    ----------
    x, y : array_like, shapes (rows, ...) and (rows,)
        Examples and their labels or targets.
    name : str
        The name of the data set.
    classes : tuple of str
        The names of the labels; ``y`` then holds integers from 0 to ``len(classes) - 1``.
    test_fraction : float
        The part of the rows, rounded up, that is kept for the test; between 0 and 1, both excluded.
    seed : int
        The same seed gives the same split.

    Returns
    -------
    Dataset

    Raises
    ------
    ShapeError
        If ``x`` and ``y`` have different numbers of rows.
    OptionError
        If ``test_fraction`` leaves either part empty.

    Examples
    --------
    >>> import numpy as np
    >>> from tapegrad.models.data import split
    >>> data = split(np.zeros((10, 2)), [0] * 5 + [1] * 5, classes=("no", "yes"), test_fraction=0.4)
    >>> np.bincount(data.test_y)
    array([2, 2])
    """
    rows, labels = np.asarray(x), np.asarray(y)
    if rows.ndim == 0 or labels.ndim == 0 or len(rows) != len(labels):
        raise ShapeError(f"split: x of shape {rows.shape} and y of shape {labels.shape} differ in their first axis")
    count = math.ceil(len(rows) * test_fraction - 1e-9)
    if not 0 < count < len(rows):
        raise OptionError(f"split: test_fraction={test_fraction} of {len(rows)} rows leaves one of the two parts empty")
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(rows))
    if classes:
        chosen = _stratified(labels[order], len(classes), count)
    else:
        chosen = np.arange(len(rows)) < count
    test, train = order[chosen], order[~chosen]
    return Dataset(name, rows[train], labels[train], rows[test], labels[test], classes)


def _stratified(labels: Array, classes: int, count: int) -> NDArray[np.bool_]:
    """A mask of ``count`` rows: the first of each class, in proportion to the classes."""
    exact = np.bincount(labels, minlength=classes) * (count / len(labels))
    share = np.floor(exact).astype(np.int64)
    largest_remainders = np.argsort(share - exact, kind="stable")[: count - share.sum()]
    share[largest_remainders] += 1
    chosen = np.zeros(len(labels), dtype=np.bool_)
    for label, number in enumerate(share):
        chosen[np.flatnonzero(labels == label)[:number]] = True
    return chosen
