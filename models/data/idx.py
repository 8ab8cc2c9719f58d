"""IDX, the format of the MNIST files: a magic number, the sizes, and one array in big-endian order."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tapegrad.errors import DataError

GZIP_MAGIC = b"\x1f\x8b"
# The third byte of the magic number; the fourth is the number of axes.
DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: str | os.PathLike[str]) -> NDArray[Any]:
    """The array of an IDX file, gzipped or not.

    Parameters
    ----------
    path : path
        The file; whether it is gzipped is seen from its content, not from its name.

    Returns
    -------
    ndarray
        In the shape and type of the file, in the machine's byte order.

    Raises
    ------
    DataError
        If the file is missing, is no IDX file, or is longer or shorter than its header says.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from tapegrad.models.data import read_idx
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "labels")
    ...     _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3]) + bytes([5, 0, 4]))
    ...     read_idx(path)
    array([5, 0, 4], dtype=uint8)
    """
    try:
        stored = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    return decode_idx(uncompressed(stored, os.fspath(path)), os.fspath(path))


def uncompressed(content: bytes, source: str) -> bytes:
    """``content``, or what it holds where it is gzipped; ``source`` is named in errors."""
    if not content.startswith(GZIP_MAGIC):
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{source} is incomplete or corrupt: {error}; remove it and fetch it again") from error


def decode_idx(content: bytes, source: str) -> NDArray[Any]:
    """The array in the bytes of an IDX file; ``source`` is named in errors."""
    dtype = DTYPES.get(content[2]) if len(content) >= 4 and content[:2] == b"\0\0" else None
    if dtype is None:
        raise DataError(f"{source} is no IDX file: it begins with {content[:4].hex(' ') or 'nothing'}")
    axes = content[3]
    start = 4 + 4 * axes
    if len(content) < start:
        raise DataError(f"{source} is incomplete: its header of {start} bytes ends after {len(content)}")
    shape = struct.unpack(f">{axes}I", content[4:start])
    expected = start + math.prod(shape) * np.dtype(dtype).itemsize
    if len(content) != expected:
        fault = "incomplete" if len(content) < expected else "corrupt"
        raise DataError(
            f"{source} is {fault}: shape {shape} needs {expected:,} bytes, and it has {len(content):,}; "
            "remove it and fetch it again"
        )
    array = np.frombuffer(content, dtype, offset=start).reshape(shape)
    return array.astype(array.dtype.newbyteorder("="))
