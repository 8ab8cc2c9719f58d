"""Fetching a data file once, checked before it is kept."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

from tapegrad.errors import DataError
from tapegrad.models.data.idx import uncompressed
from tapegrad.models.files import write_atomic

SECONDS_WITHOUT_ANSWER = 30


def fetch(addresses: Sequence[str], path: Path, sha256: str) -> Path:
    """Download a file from the first address that gives the right one, and keep it at ``path``.

    Parameters
    ----------
    addresses : sequence of str
        Mirrors, tried in their order.
    path : Path
        Where the file goes; it appears there whole or not at all.
    sha256 : str
        The hash of the *uncompressed* content, so that it holds for each way of compressing it.

    Raises
    ------
    DataError
        If no mirror gives the right file; what each of them did is in the message.
    """
    # What talks to the net takes longer to import than most data to read.
    import http.client
    import urllib.request

    faults = []
    for address in addresses:
        print(f"downloading {address}", file=sys.stderr)
        try:
            with urllib.request.urlopen(address, timeout=SECONDS_WITHOUT_ANSWER) as answer:
                content: bytes = answer.read()
            found = hashlib.sha256(uncompressed(content, address)).hexdigest()
        except DataError as error:
            faults.append(error.message)
        except (OSError, http.client.HTTPException) as error:
            faults.append(f"{address}: {error}")
        else:
            if found == sha256:
                return write_atomic(path, content)
            faults.append(f"{address}: its content has the SHA-256 {found}, not {sha256}")
    tried = "\n  ".join(faults)
    raise DataError(f"cannot download {path.name}; put it into {path.parent} by hand. What was tried:\n  {tried}")
