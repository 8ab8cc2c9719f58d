"""NVRTC by ctypes: CUDA C to machine code, without a driver, a GPU or a toolkit.

The library is that of the ``nvidia-cuda-nvrtc`` wheel, or one that the system's loader finds. CuPy's own way,
``RawModule(code=...)``, adds ``-ftz=true`` and wants CUDA's headers; here the options are ours and sources include
nothing.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tapegrad.errors import DeviceError

_PATTERNS = ("nvidia/cu*/lib/libnvrtc.so.*", "nvidia/cuda_nvrtc/lib/libnvrtc.so.*", "nvidia/cu*/bin/*/nvrtc64_*.dll")
_SYSTEM_NAMES = ("libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so")
#: What a source is compiled with, beside the architecture. Contraction is allowed, as on the CPU; subnormal numbers,
#: divisions and square roots are exact, and no warning is let pass.
OPTIONS = ("--std=c++17", "--ftz=false", "--prec-div=true", "--prec-sqrt=true", "--fmad=true")


@dataclass(frozen=True)
class CompiledSource:
    """Machine code of one source for one architecture, or PTX, and what the compilers said."""

    cubin: bytes
    log: str


def _candidates() -> Iterator[str]:
    for folder in map(Path, sys.path):
        for pattern in _PATTERNS:
            yield from map(str, sorted(folder.glob(pattern), reverse=True))
    yield from _SYSTEM_NAMES


#: The latest CUDA whose NVRTC is taken.
_newest: int | None = None


def use_at_most(major: int) -> None:
    """From now on take the NVRTC of CUDA ``major`` or before: a driver loads no code of a later one."""
    global _newest
    if major != _newest:
        _newest = major
        library.cache_clear()
        architectures.cache_clear()


@cache
def library() -> ctypes.CDLL | None:
    """NVRTC, or None where there is none.

    Examples
    --------
    >>> library() is library()
    True
    """
    for path in _candidates():
        try:
            # NVRTC opens its builtins by name later on; loaded before, they are found wherever they lie.
            for builtins in sorted(Path(path).parent.glob("libnvrtc-builtins.so.*")):
                ctypes.CDLL(str(builtins))
            found = ctypes.CDLL(path)
        except OSError:
            continue
        found.nvrtcGetErrorString.restype = ctypes.c_char_p
        if _newest is None or _version(found)[0] <= _newest:
            return found
    return None


def _require() -> ctypes.CDLL:
    found = library()
    if found is None:
        raise DeviceError(
            "the GPU's compiler NVRTC is not here: pip install 'tapegrad[gpu]', or 'tapegrad[gpu-cuda12]' for CUDA 12"
        )
    return found


def version() -> tuple[int, int]:
    """The version of NVRTC, such as (13, 0)."""
    return _version(_require())


def _version(nvrtc: ctypes.CDLL) -> tuple[int, int]:
    major, minor = ctypes.c_int(), ctypes.c_int()
    nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return major.value, minor.value


@cache
def architectures() -> tuple[int, ...]:
    """The compute capabilities that NVRTC compiles for, such as 90, in ascending order."""
    nvrtc = _require()
    count = ctypes.c_int()
    _check(nvrtc, nvrtc.nvrtcGetNumSupportedArchs(ctypes.byref(count)), "")
    found = (ctypes.c_int * count.value)()
    _check(nvrtc, nvrtc.nvrtcGetSupportedArchs(found), "")
    return tuple(sorted(found))


def target(capability: int) -> str:
    """What to compile for a GPU of some compute capability.

    Its own machine code where NVRTC knows it; else that of the nearest earlier GPU of its generation, which it runs
    too; else, for a GPU of a later generation, PTX, which the driver translates.

    Raises
    ------
    DeviceError
        Where the GPU is older than what NVRTC compiles for.
    """
    earlier = [known for known in architectures() if known <= capability]
    if not earlier:
        raise DeviceError(
            f"a GPU of compute capability {capability / 10} is too old for NVRTC {version()[0]}.{version()[1]}, which "
            f"begins at {architectures()[0] / 10}: an earlier CUDA may know it, pip install 'tapegrad[gpu-cuda12]'"
        )
    kind = "sm" if earlier[-1] // 10 == capability // 10 else "compute"
    return f"{kind}_{earlier[-1]}"


def compile_source(
    source: str, architecture: str, options: Sequence[str] = (), name: str = "program.cu"
) -> CompiledSource:
    """Machine code for an architecture such as ``"sm_90"``, or PTX for one such as ``"compute_90"``.

    Raises
    ------
    DeviceError
        Where NVRTC is missing or refuses the source, with its log.
    """
    nvrtc = _require()
    program = ctypes.c_void_p()
    _check(nvrtc, nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), name.encode(), 0, None, None), "")
    try:
        words = [f"--gpu-architecture={architecture}", *OPTIONS, *options]
        status = nvrtc.nvrtcCompileProgram(program, len(words), (ctypes.c_char_p * len(words))(*map(str.encode, words)))
        log = _text(nvrtc, program, "ProgramLog").rstrip(b"\0").decode()
        _check(nvrtc, status, log)
        made = _text(nvrtc, program, "CUBIN" if architecture.startswith("sm_") else "PTX")
        return CompiledSource(made, log)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def identity() -> str:
    """What made a cubin: NVRTC's version and the options."""
    major, minor = version()
    return " ".join((f"NVRTC {major}.{minor}", *OPTIONS))


def cubin(source: str, architecture: str, name: str) -> bytes:
    """Machine code alone."""
    return compile_source(source, architecture, name=name).cubin


def _text(nvrtc: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    _check(nvrtc, getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size)), "")
    buffer = ctypes.create_string_buffer(size.value)
    _check(nvrtc, getattr(nvrtc, f"nvrtcGet{what}")(program, buffer), "")
    return buffer.raw


def _check(nvrtc: ctypes.CDLL, status: int, log: str) -> None:
    if status:
        raise DeviceError(f"NVRTC: {nvrtc.nvrtcGetErrorString(status).decode()}" + (f"\n{log}" if log else ""))
