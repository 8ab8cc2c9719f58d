"""Writing files so that a reader sees the old content or the new, and never half of either."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write_atomic(path: str | os.PathLike[str], content: bytes) -> Path:
    """Write ``content`` to ``path`` by way of a temporary file beside it, and return the path.

    The folder is made where it is missing. An error leaves what was there before.

    Examples
    --------
    >>> import tempfile
    >>> from tapegrad.models.files import write_atomic
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_atomic(f"{folder}/new/note.txt", b"kept").read_text()
    'kept'
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    try:
        with temporary.open("xb") as file:
            file.write(content)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return target
