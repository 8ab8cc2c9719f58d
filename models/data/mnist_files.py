"""MNIST, read from IDX files where there are some, and downloaded once where there are none."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from tapegrad.config import cache_folder, data_folder
from tapegrad.errors import DataError
from tapegrad.models.data.dataset import Array, Dataset
from tapegrad.models.data.download import fetch
from tapegrad.models.data.idx import read_idx

CLASSES = tuple(str(digit) for digit in range(10))
MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/")
# SHA-256 of each file's uncompressed content.
FILES = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


def mnist(folder: str | os.PathLike[str] | None = None, download: bool = True) -> Dataset:
    """The 60,000 training and 10,000 test images of MNIST, 28 x 28 pixels.

    The four IDX files, gzipped or not, are looked for in ``folder`` if it is given; else in ``mnist`` under
    ``$TAPEGRAD_DATA``, then in ``mnist`` under the cache folder, to which they are downloaded if need be.

    Parameters
    ----------
    folder : path, optional
        Where the files lie. Nothing is downloaded into it.
    download : bool
        Whether missing files may be downloaded, about 11 MB.

    Returns
    -------
    Dataset
        784 features in [0, 1] as float32, and the digits as int64.

    Raises
    ------
    DataError
        If a file is missing, incomplete or corrupt, or cannot be downloaded.

    Examples
    --------
    >>> from tapegrad.models.data import mnist
    >>> mnist(folder="/nowhere")
    Traceback (most recent call last):
        ...
    tapegrad.errors.DataError: mnist: /nowhere holds no train-images-idx3-ubyte.gz...
    """
    train_images, train_labels, test_images, test_labels = _locate(folder, download)
    train_x, train_y = _read_part(train_images, train_labels)
    test_x, test_y = _read_part(test_images, test_labels)
    return Dataset("mnist", train_x, train_y, test_x, test_y, CLASSES)


def _locate(folder: str | os.PathLike[str] | None, download: bool) -> list[Path]:
    """The four files, in the order of ``FILES``, all from one folder."""
    if folder is not None:
        return _complete(Path(folder))
    named, cached = data_folder(), cache_folder() / "mnist"
    if named is not None and any(_present(named / "mnist", name) for name in FILES):
        return _complete(named / "mnist")
    if not download:
        return _complete(cached)
    return [_present(cached, name) or _download(cached, name) for name in FILES]


def _complete(folder: Path) -> list[Path]:
    """The four files of a folder that must hold all of them."""
    found = {name: _present(folder, name) for name in FILES}
    missing = [f"{name}.gz" for name, path in found.items() if path is None]
    if missing:
        raise DataError(
            f"mnist: {folder} holds no {', '.join(missing)}; put the MNIST files there, gzipped or not, "
            "or name their folder's parent in $TAPEGRAD_DATA"
        )
    return [path for path in found.values() if path is not None]


def _present(folder: Path, name: str) -> Path | None:
    """The gzipped file of that name, or the plain one, if either is there."""
    return next((path for path in (folder / f"{name}.gz", folder / name) if path.is_file()), None)


def _download(folder: Path, name: str) -> Path:
    """Fetch one file into the cache."""
    return fetch([f"{mirror}{name}.gz" for mirror in MIRRORS], folder / f"{name}.gz", FILES[name])


def _read_part(images_path: Path, labels_path: Path) -> tuple[Array, Array]:
    """Scaled images and their labels, checked against each other."""
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.ndim != 3 or images.dtype != np.uint8:
        raise DataError(f"{images_path} holds {images.dtype} of shape {images.shape}, not uint8 of three axes")
    if labels.shape != images.shape[:1]:
        raise DataError(f"{labels_path} holds labels of shape {labels.shape} for {len(images)} images of {images_path}")
    if labels.size and not 0 <= labels.min() <= labels.max() < len(CLASSES):
        raise DataError(f"{labels_path} holds labels from {labels.min()} to {labels.max()}, not from 0 to 9")
    x = images.reshape(len(images), -1).astype(np.float32)
    x /= 255
    return x, labels.astype(np.int64)
