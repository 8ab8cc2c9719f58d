"""Compiled programs on disk: one file a program, found by what the program computes and what compiled it.

A file holds a line of JSON (lengths and a checksum), then metadata, readable source and object code. It appears by an
atomic rename, so processes that compile the same program at once do not disturb each other. A file that is damaged is
removed, and its program compiled again. A folder that cannot be written costs speed and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tapegrad import config
from tapegrad.runtime.device import MachineCode

_MAGIC = "tapegrad program 2"
_SUFFIX = ".program"
_UNFINISHED = ".unfinished"
#: Machine code for GPUs, which `cubins` keeps in the same folder.
CUBIN_SUFFIX = ".cubin"

#: Bytes of all cached programs together; beyond that the least recently used are removed.
MAX_BYTES = 512 * 2**20
#: Seconds after which a file that its writer never finished is removed.
_ABANDONED = 3600.0


@dataclass(frozen=True)
class Entry:
    """A program read from the cache."""

    metadata: dict[str, Any]
    source: str
    code: tuple[MachineCode, ...]


@dataclass(frozen=True)
class CacheEntry:
    """What ``tapegrad cache`` lists: a program's key, name, size in bytes and time of its last use."""

    key: str
    name: str
    bytes: int
    used: float


def folder() -> Path:
    """The folder of compiled programs; it need not exist yet."""
    return config.cache_folder() / "programs"


def _path(key: str) -> Path:
    return folder() / f"{key}{_SUFFIX}"


@cache
def sources_hash() -> str:
    """A hash of every source file that decides what a program's machine code is."""
    package = Path(__file__).resolve().parent.parent
    import tapegrad.kernels

    digest = hashlib.sha256()
    roots = [package / "compiler", package / "ir", *map(Path, tapegrad.kernels.__path__)]
    files = [package / "primitives.py", *(file for root in roots for file in root.rglob("*.py"))]
    for file in sorted(filter(Path.is_file, files)):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def program_key(content: str, identity: str, options: str = "") -> str:
    """The key of a program: its graph's content hash, the machine and versions, the options, and our own sources.

    Examples
    --------
    >>> program_key("graph", "cpu 1") == program_key("graph", "cpu 1")
    True
    >>> program_key("graph", "cpu 1") == program_key("graph", "cpu 2")
    False
    """
    text = "\0".join((content, identity, options, sources_hash()))
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def _pack(metadata: dict[str, Any], source: str, code: Sequence[MachineCode]) -> bytes:
    objects = list(dict.fromkeys(item.data for item in code))
    symbols = [[item.function, item.symbol, objects.index(item.data)] for item in code]
    parts = [json.dumps(metadata | {"symbols": symbols}).encode(), source.encode(), *objects]
    body = b"".join(parts)
    head = {"format": _MAGIC, "lengths": list(map(len, parts)), "sha256": hashlib.sha256(body).hexdigest()}
    return json.dumps(head).encode() + b"\n" + body


def _unpack(data: bytes) -> Entry:
    """The entry in the bytes of a file; ValueError or KeyError where they are damaged."""
    line, _, body = data.partition(b"\n")
    head = json.loads(line)
    if head["format"] != _MAGIC or hashlib.sha256(body).hexdigest() != head["sha256"]:
        raise ValueError("the checksum differs")
    parts, position = [], 0
    for length in head["lengths"]:
        parts.append(body[position : position + length])
        position += length
    metadata = json.loads(parts[0])
    symbols, objects = metadata.pop("symbols"), parts[2:]
    code = tuple(MachineCode(function, symbol, objects[number]) for function, symbol, number in symbols)
    return Entry(metadata, parts[1].decode(), code)


def load(key: str) -> Entry | None:
    """The program of a key, or None; a damaged file is removed."""
    path = _path(key)
    try:
        data = path.read_bytes()
    except OSError:
        return None
    try:
        entry = _unpack(data)
    except (ValueError, KeyError, TypeError, IndexError):
        discard(key)
        return None
    with suppress(OSError):
        os.utime(path)
    return entry


def discard(key: str) -> None:
    """Remove a program's file."""
    with suppress(OSError):
        _path(key).unlink()


def write(path: Path, data: bytes) -> Path:
    """Let a file appear at once with its contents, and keep the folder within its bounds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, unfinished = tempfile.mkstemp(_UNFINISHED, path.name[:16], path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(unfinished, path)
    except OSError:
        with suppress(OSError):
            os.unlink(unfinished)
        raise
    _keep_within_bounds()
    return path


def store(key: str, metadata: dict[str, Any], source: str, code: Sequence[MachineCode]) -> bool:
    """Write a program; False where the folder cannot be written, which does no harm."""
    try:
        write(_path(key), _pack(metadata, source, code))
    except OSError:
        return False
    return True


def _files() -> Iterator[tuple[Path, os.stat_result]]:
    try:
        found = list(os.scandir(folder()))
    except OSError:
        return
    for item in found:
        if item.name.endswith((_SUFFIX, CUBIN_SUFFIX, _UNFINISHED)):
            with suppress(OSError):
                yield Path(item.path), item.stat()


def _keep_within_bounds() -> None:
    """Remove the least recently used programs beyond `MAX_BYTES`, and what crashed writers left."""
    files = sorted(_files(), key=lambda pair: pair[1].st_mtime, reverse=True)
    total = 0
    for path, status in files:
        total += status.st_size
        abandoned = path.name.endswith(_UNFINISHED) and time.time() - status.st_mtime > _ABANDONED
        if total > MAX_BYTES or abandoned:
            with suppress(OSError):
                path.unlink()


def cache_entries() -> list[CacheEntry]:
    """The cached programs, the most recently used first; files that cannot be read are left out."""
    entries = []
    for path, status in _files():
        key, name = path.stem, None
        if path.suffix == CUBIN_SUFFIX:
            key, _, name = [*path.stem.split("-", 2), "", ""][:3]
        elif path.suffix == _SUFFIX:
            with suppress(OSError, ValueError, KeyError, TypeError, IndexError):
                name = str(_unpack(path.read_bytes()).metadata.get("name", ""))
        if name is not None:
            entries.append(CacheEntry(key, name, status.st_size, status.st_mtime))
    return sorted(entries, key=lambda entry: entry.used, reverse=True)


def clear() -> int:
    """Remove every cached program and return how many files that were."""
    removed = 0
    for path, _ in list(_files()):
        with suppress(OSError):
            path.unlink()
            removed += 1
    return removed
