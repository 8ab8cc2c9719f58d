"""Says what to do when tapegrad is imported from a checkout whose links did not arrive as links."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec

MAPPED = ("kernels", "models")


def require_mapped_packages(package: str, folders: Sequence[str]) -> None:
    """Raise ImportError unless ``kernels`` and ``models`` can be imported from ``package``, which lies in ``folders``.

    In a repository the two are links to folders beside the package. Windows, or a zip, may turn a link into a
    text file; an installation, also an editable one, needs no links.
    """
    for name in MAPPED:
        if any(os.path.isdir(os.path.join(folder, name)) for folder in folders):
            continue
        if find_spec(f"{package}.{name}") is None:
            raise ImportError(
                f"{package}.{name} cannot be imported: {os.path.join(folders[0], name)} should be a link to the folder "
                f"{name} beside it, and is not one here (Windows and zip files lose links); "
                "run `pip install -e .` in the checkout first"
            )
