"""Weights on disk: NumPy's ``.npz``, one array for each name of the state."""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from pathlib import Path

import numpy as np

from tapegrad.errors import DataError, StateError
from tapegrad.ir.dtypes import bfloat16
from tapegrad.models.files import write_atomic
from tapegrad.models.module import Module


def save_weights(path: str | os.PathLike[str], module: Module) -> Path:
    """Write the state of a module to a file, which any NumPy reads with ``np.load``.

    The file appears whole or not at all: an error leaves what was there before.

    Parameters
    ----------
    path : path-like
        Conventionally ends in ``.npz``; folders are made where they are missing.
    module : Module

    Returns
    -------
    Path

    Examples
    --------
    >>> import tempfile
    >>> from tapegrad.models import Linear, load_weights, save_weights
    >>> first, second = Linear(2, 1), Linear(2, 1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     load_weights(save_weights(f"{folder}/weights.npz", first), second)
    >>> bool((first.weight.numpy() == second.weight.numpy()).all())
    True
    """
    content = io.BytesIO()
    np.savez(content, **module.state_dict())  # type: ignore[arg-type]
    return write_atomic(path, content.getvalue())


def load_weights(path: str | os.PathLike[str], module: Module, strict: bool = True) -> None:
    """Read the state of a module from a file that `save_weights` wrote.

    Parameters
    ----------
    path : path-like
    module : Module
    strict : bool
        Whether missing and unknown names are errors.

    Raises
    ------
    DataError
        Where the file is missing, incomplete or corrupt.
    StateError
        Where names or shapes do not fit. The module is as it was after either error.

    Examples
    --------
    >>> import tempfile
    >>> from tapegrad.models import MLP, load_weights, save_weights
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     load_weights(save_weights(f"{folder}/weights.npz", MLP(2, [3], 1)), MLP(2, [3], 1))
    """
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise ValueError("it holds a single array")
        with loaded as archive:
            state = {name: _named(archive[name]) for name in archive.files}
    except FileNotFoundError:
        raise DataError(f"load_weights: there is no file {os.fspath(path)}") from None
    except (OSError, ValueError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"load_weights: {os.fspath(path)} is not a whole weights file ({error or type(error).__name__})"
        ) from None
    try:
        module.load_state_dict(state, strict)
    except StateError as error:
        raise StateError(f"{os.fspath(path)}: {error.message}") from None


def _named(array: np.ndarray) -> np.ndarray:
    """The array; two bytes without a name are bfloat16, which a file of NumPy's cannot name."""
    return array.view(bfloat16()) if array.dtype == np.dtype("V2") else array
