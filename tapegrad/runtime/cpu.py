"""The CPU: compiles printed source with Numba to object code, loads object code with llvmlite alone, allocates.

Numba is imported when something is compiled for the first time; a program from the disk cache never needs it.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from tapegrad.errors import GraphError
from tapegrad.kernels.cpu import entries, philox
from tapegrad.runtime import cache as cached
from tapegrad.runtime import threads
from tapegrad.runtime.counters import counters
from tapegrad.runtime.device import LoadedCode, MachineCode

ALIGNMENT = 64
#: Seconds after which a compilation is announced.
SLOW_COMPILE = 1.0
#: Numbers from which on they are shuffled by native code, which may have to be compiled first.
MANY_SHUFFLED = 2048

# Where a NumPy array object holds the address of its data: right after the object's head. Reading it there takes a
# fifth of the time of ``array.ctypes.data``; the layout is checked once.
_DATA_FIELD = object.__basicsize__
_probe = np.empty(1)
_FIELD_IS_KNOWN = ctypes.c_ssize_t.from_address(id(_probe) + _DATA_FIELD).value == _probe.ctypes.data
_word_at = ctypes.c_ssize_t.from_address

if _FIELD_IS_KNOWN:

    def address_of(array: np.ndarray) -> int:
        """Where an array's memory begins."""
        return _word_at(id(array) + _DATA_FIELD).value

else:

    def address_of(array: np.ndarray) -> int:
        """Where an array's memory begins."""
        return int(array.ctypes.data)


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """A new C-contiguous array, any contents, beginning at a 64-byte boundary.

    Examples
    --------
    >>> address_of(aligned_empty((3, 5), np.dtype(np.float32))) % 64
    0
    """
    count = 1
    for size in shape:
        count *= size
    memory = np.empty(count * dtype.itemsize + ALIGNMENT, np.uint8)
    start = -address_of(memory) % ALIGNMENT
    return memory[start : start + count * dtype.itemsize].view(dtype).reshape(shape)


def runs_as_python() -> bool:
    """Whether ``NUMBA_DISABLE_JIT=1`` asks for programs to run as plain Python."""
    return os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0")


# --- compilation ----------------------------------------------------------------------------------------------------


def announce_slow_compile(name: str) -> None:
    """Say on a terminal that a compilation takes its time."""
    if sys.stderr is not None and sys.stderr.isatty():
        print(f"tapegrad: compiling {name} ...", file=sys.stderr, flush=True)


#: Called with the program's name when a compilation has lasted longer than `SLOW_COMPILE` seconds.
on_slow_compile: Callable[[str], None] = announce_slow_compile


@contextmanager
def _announced(name: str) -> Iterator[None]:
    timer = threading.Timer(SLOW_COMPILE, lambda: on_slow_compile(name))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def run_source(source: str, name: str) -> dict[str, Any]:
    """The names that a printed program defines, as plain Python functions."""
    namespace: dict[str, Any] = {"__name__": "tapegrad.program"}
    exec(compile(source, f"<tapegrad {name}>", "exec"), namespace)
    return namespace


def compile_source(source: str, functions: Sequence[str], name: str) -> tuple[MachineCode, ...]:
    """Compile the functions of a printed program with Numba to one object."""
    with _announced(name):
        from tapegrad.kernels.cpu.native import NativeFunction, compile_together
        from tapegrad.kernels.cpu.pointers import BLOCK_PHASE, BLOCK_PROGRAM

        namespace = run_source(source, name)
        signatures = [BLOCK_PHASE if function.startswith("phase_") else BLOCK_PROGRAM for function in functions]
        compiled = compile_together(
            [NativeFunction(namespace[f], kind, f) for f, kind in zip(functions, signatures, strict=True)]
        )
    return tuple(MachineCode(item.name, item.symbol, item.code) for item in compiled)


# --- loading --------------------------------------------------------------------------------------------------------


class NativeCode:
    """Object code loaded by llvmlite alone; unloaded when nothing refers to it any more."""

    def __init__(self, code: Sequence[MachineCode]) -> None:
        from llvmlite import binding

        from tapegrad.kernels.cpu.objects import target_machine

        # An engine of its own, which owns the machine and the empty module: it goes when the program goes.
        engine = binding.create_mcjit_compiler(binding.parse_assembly(""), target_machine())
        for data in dict.fromkeys(item.data for item in code):
            engine.add_object_file(binding.ObjectFileRef.from_data(data))
        engine.finalize_object()
        self.addresses = {item.function: int(engine.get_function_address(item.symbol)) for item in code}
        if not all(self.addresses.values()):
            raise GraphError(f"machine code without its symbols: {self.addresses}")
        self._engine = engine
        self._first = self.addresses[code[0].function]
        self.entry: Callable[[Any], int] = _PROGRAM(self._first)

    def repeat(self, block: int, steps: int, moves: int, count: int, gathered: int, arrays: int) -> int:
        """Run the first function several times in one native call, gathering rows before each, moving words after."""
        status: int = _repeat_program()(self._first, block, steps, moves, count, gathered, arrays)
        return status


# ctypes releases the interpreter's lock during calls of these.
_PROGRAM = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p)
_REPEAT = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_int64] * 7)


@cache
def _native_permutation() -> Any:
    code = _library_code("permutation")
    return ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 4)(code.addresses["permutation"])


def permutations(seed: int, draws: range, count: int) -> np.ndarray:
    """One line of `philox.permutation` for each draw, by native code where there is much to shuffle.

    Examples
    --------
    >>> sorted(permutations(seed=1, draws=range(3), count=5)[2].tolist())
    [0, 1, 2, 3, 4]
    """
    orders = np.empty((len(draws), count), np.int64)
    native = _native_permutation() if orders.size >= MANY_SHUFFLED and not runs_as_python() else None
    address = address_of(orders)
    for line, draw in enumerate(draws):
        if native is not None:
            native(address + line * count * orders.itemsize, count, int(seed), draw)
        else:
            orders[line] = philox.permutation(seed, draw, count)
    return orders


@cache
def _repeat_program() -> Any:
    return _REPEAT(_library_code("repeat_program").addresses["repeat_program"])


def _on_words(phase: Callable[..., int]) -> Callable[..., int]:
    """A phase on the address of a block."""
    return lambda block, *arguments: phase(ctypes.cast(block, ctypes.POINTER(ctypes.c_int64)), *arguments)


class PythonCode:
    """A printed program that runs as plain Python, under ``NUMBA_DISABLE_JIT=1``."""

    def __init__(self, source: str, name: str, functions: Sequence[str]) -> None:
        from tapegrad.kernels.cpu.threads import PYTHON_PHASE

        namespace = run_source(source, name)
        phases = [function for function in functions if function.startswith("phase_")]
        self._phases = {phase: PYTHON_PHASE(_on_words(namespace[phase])) for phase in phases}
        addresses = {phase: ctypes.cast(made, ctypes.c_void_p).value for phase, made in self._phases.items()}
        self.addresses = {phase: address or 0 for phase, address in addresses.items()}
        pieces = [function for function in functions[1:] if function not in phases] or functions[:1]
        self._pieces = [namespace[piece] for piece in pieces]
        self.entry: Callable[[Any], int] = self._run

    def _run(self, address: int) -> int:
        """Run the pieces on the block at an address."""
        words = ctypes.cast(address, ctypes.POINTER(ctypes.c_int64))
        with np.errstate(all="ignore"):
            for piece in self._pieces:
                status = int(piece(words))
                if status:
                    return status
        return 0

    def repeat(self, block: int, steps: int, moves: int, count: int, gathered: int, arrays: int) -> int:
        """Run the pieces several times, gathering rows before each, moving the block's words after."""
        words, table, gathers = (ctypes.cast(at, ctypes.POINTER(ctypes.c_int64)) for at in (block, moves, gathered))
        for _ in range(steps):
            for first in range(0, 5 * arrays, 5):
                source, size, numbers, rows, target = gathers[first : first + 5]
                for place, number in enumerate((ctypes.c_int64 * rows).from_address(numbers)):
                    ctypes.memmove(target + place * size, source + number * size, size)
                gathers[first + 2] = numbers + 8 * rows
            status = self._run(block)
            if status:
                return status
            for row in range(count):
                words[table[2 * row]] += table[2 * row + 1]
        return 0


_library: dict[str, NativeCode] = {}
_library_lock = threading.RLock()
if hasattr(os, "register_at_fork"):  # a child must not inherit a lock whose owner it does not have
    os.register_at_fork(
        before=_library_lock.acquire, after_in_parent=_library_lock.release, after_in_child=_library_lock.release
    )


def _library_code(function: str) -> NativeCode:
    """A library function, loaded from the cache, or compiled and stored there; once in a process, for it never goes."""
    with _library_lock:
        if function not in _library:
            _library[function] = _make_library_code(function)
        return _library[function]


def _make_ready(functions: Sequence[str]) -> None:
    with suppress(Exception):
        for function in functions:
            _library_code(function)
        _quick_call()


def _make_library_code(function: str) -> NativeCode:
    key = cached.program_key(f"library {function}", DEVICE.identity())
    entry = cached.load(key)
    if entry is not None:
        try:
            return NativeCode(entry.code)
        except (GraphError, RuntimeError):
            cached.discard(key)
    with _announced(f"the library function {function}"):
        from tapegrad.kernels.cpu.library import compile_function

        compiled = compile_function(function)
    code = (MachineCode(compiled.name, compiled.symbol, compiled.code),)
    cached.store(key, {"name": function}, "", code)
    return NativeCode(code)


class _MethodDefinition(ctypes.Structure):
    """CPython's ``PyMethodDef``."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("documentation", ctypes.c_char_p),
    )


_METH_FASTCALL = 0x80


def _quick_call() -> _MethodDefinition:
    """What `_make_quick_call` gives; one thread makes it, for Python functions keep its address."""
    with _library_lock:
        return _make_quick_call()


@cache
def _make_quick_call() -> _MethodDefinition:
    """The definition of `quick_call` as a Python function; its machine code is loaded, or compiled and stored."""
    from tapegrad.kernels.cpu import objects
    from tapegrad.kernels.cpu.quick_call import compile_quick_call

    key = cached.program_key("library quick_call", DEVICE.identity())
    entry = cached.load(key)
    code: tuple[MachineCode, ...]
    if entry is None:
        compiled = compile_quick_call()
        code = (MachineCode(compiled.name, compiled.symbol, compiled.code),)
        with suppress(OSError):
            cached.store(key, {"name": "quick_call"}, "", code)
    else:
        code = tuple(entry.code)
    address = objects.load(objects.ObjectCode(code[0].function, code[0].symbol, code[0].data))
    return _MethodDefinition(b"quick_call", address, _METH_FASTCALL, None)


def quick_call(table: np.ndarray) -> Callable[..., Any]:
    """The function of `tapegrad.kernels.cpu.quick_call` over a table of int64 words, which it keeps."""
    make = ctypes.pythonapi.PyCFunction_NewEx
    make.restype, make.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p)
    function: Callable[..., Any] = make(ctypes.addressof(_quick_call()), table, None)
    return function


def interpreter_function(name: str) -> int:
    """Where a function of CPython's own lies."""
    return ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value or 0


def cached_code(source: str, function: str, name: str) -> LoadedCode:
    """The one function of a source, loaded: from the disk cache, or compiled and stored there."""
    if runs_as_python():
        return PythonCode(source, name, (function,))
    key = cached.program_key(hashlib.sha256(source.encode()).hexdigest(), DEVICE.identity())
    entry = cached.load(key)
    if entry is not None:
        try:
            return NativeCode(entry.code)
        except (GraphError, RuntimeError):
            cached.discard(key)
    code = compile_source(source, (function,), name)
    counters.add("compiles")
    cached.store(key, {"name": name}, source, code)
    return NativeCode(code)


def _numba_version() -> str:
    """What tells one Numba from another, found without importing it or the slow `importlib.metadata`."""
    spec = find_spec("numba")
    if spec is None or spec.origin is None:
        return "no numba"
    stated = Path(spec.origin).with_name("_version.py")
    if not stated.exists():
        return f"numba {spec.origin}"
    return f"numba {hashlib.sha256(stated.read_bytes()).hexdigest()[:16]}"


class CPU:
    """This machine's processors."""

    name = "cpu"

    @cache  # noqa: B019 - there is one CPU
    def identity(self) -> str:
        """The processor with its features, and the versions of what compiles for it."""
        import llvmlite
        from llvmlite import binding

        versions = f"{_numba_version()} llvmlite {llvmlite.__version__} numpy {np.__version__}"
        features = binding.get_host_cpu_features().flatten()
        overrides = " ".join(os.environ.get(f"NUMBA_{name}", "") for name in ("CPU_NAME", "CPU_FEATURES", "OPT"))
        machine = f"{binding.get_process_triple()} {binding.get_host_cpu_name()} {features} {overrides}"
        return f"{machine} {versions} python {platform.python_version()}"

    def compile(self, source: str, functions: Sequence[str], name: str) -> tuple[MachineCode, ...]:
        """Compile the functions of a printed program."""
        return compile_source(source, functions, name)

    def load(self, code: Sequence[MachineCode]) -> LoadedCode:
        """Make machine code ready to run."""
        return NativeCode(code)

    def prepare(self, functions: Sequence[str]) -> None:
        """Begin to make library functions ready on another thread; one that fails is tried again when it is called."""
        wanted = [*functions, *(["wait_for_phases"] if "run_phase" in functions else [])]
        missing = [function for function in wanted if function not in _library]
        if missing or not _make_quick_call.cache_info().currsize:
            import tapegrad.kernels.cpu.library  # noqa: F401 - two threads that import one module may wait for each other

            threading.Thread(target=_make_ready, args=(missing,), name="tapegrad library").start()

    def library(self, function: str) -> int:
        """The entry of a library function; it is compiled once and then lies in the disk cache, too."""
        if runs_as_python():
            return 0
        pool = 0
        if function == "run_phase":
            threads.start(_library_code("wait_for_phases").addresses["wait_for_phases"])
            pool = threads.pool()
        return entries.entry(function, _library_code(function).addresses[function], pool)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """A new array at a 64-byte boundary."""
        return aligned_empty(shape, dtype)

    def address(self, array: np.ndarray) -> int:
        """Where an array's memory begins."""
        return address_of(array)


#: The device that every program of this process runs on unless another is named.
DEVICE = CPU()
