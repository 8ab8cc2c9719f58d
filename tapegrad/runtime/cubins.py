"""Machine code for GPUs on disk: one file a source, which CuPy loads by its path.

The file's name holds the key - a hash of the source, the architecture, the compiler and its options - and a checksum of
the contents. A file appears by an atomic rename; one whose contents do not have its checksum is removed.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

from tapegrad.runtime import cache as cached


def cubin_key(source: str, architecture: str, compiler: str) -> str:
    """The key of machine code: everything that it depends on.

    Examples
    --------
    >>> cubin_key("source", "sm_90", "NVRTC 13") == cubin_key("source", "sm_80", "NVRTC 13")
    False
    """
    return hashlib.sha256("\0".join((source, architecture, compiler)).encode()).hexdigest()[:40]


def _checksum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def find(key: str) -> Path | None:
    """The file of a key, or None; damaged files are removed."""
    for path in sorted(cached.folder().glob(f"{key}-*{cached.CUBIN_SUFFIX}")):
        with suppress(OSError):
            if _checksum(path.read_bytes()) == path.name.split("-")[1]:
                os.utime(path)
                return path
            path.unlink()
    return None


def discard(path: Path) -> None:
    """Remove a file."""
    with suppress(OSError):
        path.unlink()


def store(key: str, name: str, data: bytes) -> Path:
    """Write machine code and say where: in the cache, or in a folder of this process where that cannot be written."""
    file = f"{key}-{_checksum(data)}-{re.sub(r'[^A-Za-z0-9_]', '_', name)[:60]}{cached.CUBIN_SUFFIX}"
    with suppress(OSError):
        return cached.write(cached.folder() / file, data)
    return cached.write(Path(_own_folder().name) / file, data)


@cache
def _own_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="tapegrad-cubins-")
