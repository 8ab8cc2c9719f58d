"""The CUDA device of tapegrad on the simulated CuPy: its machine code is the source itself."""

from __future__ import annotations

from tapegrad.runtime.gpu import Compiler, CudaDevice

from . import cupy
from .cublas import CupyMemory, FakeCublas

COMPILER = Compiler(
    identity=lambda: "simulator",
    target=lambda capability: f"sm_{capability}",
    cubin=lambda source, target, name: source.encode(),
)


def simulated_device() -> CudaDevice:
    """A new one; all of them share one memory."""
    return CudaDevice(cupy, COMPILER, lambda: FakeCublas(CupyMemory()))
