"""What generated code calls: CPU kernels for Numba; imported as ``tapegrad.kernels``."""

if __name__ != "tapegrad.kernels":
    raise ImportError(
        f"this folder is the package tapegrad.kernels, but it was imported as {__name__!r}; "
        "write `import tapegrad.kernels` (from a checkout: `pip install -e .` first)"
    )
