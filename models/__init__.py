"""Layers, losses, optimizers, data and training, built on the tape; imported as ``tapegrad.models``."""

if __name__ != "tapegrad.models":
    raise ImportError(
        f"this folder is the package tapegrad.models, but it was imported as {__name__!r}; "
        "write `import tapegrad.models` (from a checkout: `pip install -e .` first)"
    )
