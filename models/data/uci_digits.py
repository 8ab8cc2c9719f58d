"""The handwritten digits that come with the package; ``digits.txt`` names their source and licence."""

from __future__ import annotations

import zipfile
import zlib
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from tapegrad.errors import DataError
from tapegrad.models.data.dataset import Dataset, split

CLASSES = tuple(str(digit) for digit in range(10))
WHITE = 16
DAMAGE = (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error)


def digits(seed: int = 0, test_fraction: float = 0.2) -> Dataset:
    """1,797 handwritten digits of 8 x 8 pixels, embedded in the package: no file or network is needed.

    Parameters
    ----------
    seed : int
        Seed of the split, which is stratified and shuffled.
    test_fraction : float
        The part of the rows kept for the test.

    Returns
    -------
    Dataset
        64 features in [0, 1] as float32, and the digits as int64.

    Raises
    ------
    DataError
        If the file of the package is damaged.

    Examples
    --------
    >>> from tapegrad.models.data import digits
    >>> data = digits(seed=1)
    >>> data.train_x.dtype, float(data.train_x.max()), data.test_y.shape
    (dtype('float32'), 1.0, (360,))
    """
    images, labels = _read()
    x = images.reshape(len(images), -1).astype(np.float32) / WHITE
    return split(x, labels.astype(np.int64), name="digits", classes=CLASSES, test_fraction=test_fraction, seed=seed)


def _read() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images and labels as they lie in the package."""
    source = files("tapegrad.models.data").joinpath("digits.npz")
    try:
        with source.open("rb") as file, np.load(file) as stored:
            return stored["images"], stored["labels"]
    except DAMAGE as error:
        raise DataError(f"digits: {source} is missing or damaged ({error}); install tapegrad again") from error
