"""Compile CUDA C with g++ and launch its kernels on NumPy arrays.

`compile_module` gives a `Module`; ``module["name"](grid, block, arguments)`` launches. Arguments are NumPy arrays for
pointers and NumPy scalars for the rest, as CuPy wants them.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

HERE = Path(__file__).parent
ORDERS = ("ascending", "descending", "shuffled")
Order = Literal["ascending", "descending", "shuffled"]

_RUNTIME = ("scheduler.cpp", "memory.cpp", "simulator.h")
_COMPILE = ("g++", "-std=c++17", "-fPIC", "-w", "-fno-strict-aliasing", "-fno-exceptions", "-ffp-contract=fast")
_UNDEFINED = "alignment,bounds,signed-integer-overflow,integer-divide-by-zero,shift,float-cast-overflow"
_CHECKED = ("-O0", "-g0", "-fsanitize=thread", f"-fsanitize={_UNDEFINED}")
_UNCHECKED = ("-O2",)
_KERNEL = re.compile(
    r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\s*\(\s*(\w+)[^)]*\)\s*)?(\w+)\s*\(([^)]*)\)', re.DOTALL
)
_DEFINE = re.compile(r"^#define (\w+) (\d+)\s*$", re.MULTILINE)
_DTYPES = {
    **{"float": "f4", "double": "f8", "int": "i4", "unsigned": "u4", "long": "i8", "char": "i1", "bool": "b1"},
    **{"f32": "f4", "f64": "f8", "i32": "i4", "i64": "i8", "u8": "u1", "b1": "b1"},
}
_SCALARS: dict[str, tuple[type, ...]] = {
    "i": (np.int32, np.uint32),
    "l": (np.int64, np.uint64),
    "f": (np.float32,),
    "d": (np.float64,),
    "b": (np.bool_, np.int8, np.uint8),
}
_running = threading.Lock()
#: Bytes before and behind each array in which every access is out of bounds.
_MARGIN = 1 << 16


#: The runtime knows one launch at a time.
_launching = threading.Lock()


class SimulatorError(RuntimeError):
    """What a GPU would do wrong, or refuse."""


def available() -> bool:
    """Whether g++ is here."""
    return shutil.which("g++") is not None


@dataclass(frozen=True)
class Parameter:
    """A parameter of a kernel, as its source declares it."""

    name: str
    type: str
    constant: bool
    restricted: bool


@dataclass(frozen=True)
class Span:
    """Memory of the simulated device: where it begins, how long it is, and where the bytes are that say what is set."""

    address: int
    bytes: int
    dtype: np.dtype
    filled: int
    #: What has to live as long.
    keep: Any = None


class _Watched(ctypes.Structure):
    """A span, as the memory checker wants it."""

    _fields_ = (
        ("begin", ctypes.c_void_p),
        ("bytes", ctypes.c_uint64),
        ("element_bytes", ctypes.c_int),
        ("constant", ctypes.c_int),
        ("name", ctypes.c_char_p),
        ("initialised", ctypes.c_void_p),
    )


def _parameter(text: str) -> Parameter:
    words = text.replace("*", " ").split()
    rest = [word for word in words[:-1] if word not in ("const", "__restrict__", "unsigned")]
    kind = rest[0] if rest else "unsigned"
    return Parameter(words[-1], kind, "const" in words, "__restrict__" in words)


def _folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"tapegrad-cudasim-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    return folder


def _built(key: str, suffix: str, command: Sequence[str]) -> Path:
    """The file that a command makes, made once for each key."""
    target = _folder() / f"{hashlib.sha256(key.encode()).hexdigest()[:20]}{suffix}"
    if not target.exists():
        temporary = target.with_name(f"{target.name}.{os.getpid()}")
        run = subprocess.run([*command, "-o", str(temporary)], capture_output=True, text=True)
        if run.returncode:
            raise SimulatorError(f"g++ failed:\n{run.stderr}")
        os.replace(temporary, target)
    return target


@cache
def _runtime() -> ctypes.CDLL:
    text = "".join((HERE / name).read_text() for name in _RUNTIME)
    sources = [str(HERE / name) for name in _RUNTIME if name.endswith(".cpp")]
    path = _built(text, ".so", ["g++", "-std=c++17", "-O2", "-fPIC", "-shared", *sources])
    library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    library.cudasim_message.restype = ctypes.c_char_p
    return library


class Kernel:
    """A kernel of a module; call it to launch it."""

    def __init__(self, module: Module, name: str, bound: str, parameters: Sequence[Parameter]) -> None:
        self.name = name
        self.parameters = tuple(parameters)
        self._module = module
        self.bound = int(bound) if bound.isdigit() else None
        kinds = getattr(module.library, f"cudasim_kinds_{name}")
        kinds.restype = ctypes.c_char_p
        self._kinds = kinds().decode()
        self._run = ctypes.cast(getattr(module.library, f"cudasim_run_{name}"), ctypes.c_void_p)

    def __call__(
        self,
        grid: Sequence[int],
        block: Sequence[int],
        arguments: Sequence[Any],
        *,
        shared_bytes: int = 0,
        cooperative: bool = False,
        order: Order = "ascending",
        seed: int = 1,
        uninitialised: Sequence[str] = (),
    ) -> None:
        """Run the kernel; arrays that it writes change.

        Parameters
        ----------
        grid, block : sequence of int
        arguments : sequence
            Arrays and NumPy scalars, one for each parameter.
        shared_bytes : int
            Dynamic shared memory of a block.
        cooperative : bool
            Whether all blocks are resident together, as a grid barrier needs.
        order : {"ascending", "descending", "shuffled"}
            Which thread goes first wherever several could; ``seed`` is for "shuffled".
        uninitialised : sequence of str
            Parameters whose arrays hold nothing yet.

        Raises
        ------
        SimulatorError
            Naming the kernel, the fault and the thread.
        """
        self._refuse_aliases(arguments)
        copies: list[tuple[np.ndarray, np.ndarray]] = []
        handed: list[Any] = []
        for argument, parameter in zip(arguments, self.parameters, strict=False):
            if not isinstance(argument, np.ndarray):
                handed.append(argument)
                continue
            if not argument.flags.c_contiguous:
                raise SimulatorError(f"{self.name}: {parameter.name} is not C-contiguous")
            copy = _device_copy(argument)
            filled = np.full(max(argument.nbytes, 1), parameter.name not in uninitialised, np.uint8)
            copies.append((argument, copy))
            handed.append(Span(copy.ctypes.data, argument.nbytes, argument.dtype, filled.ctypes.data, (copy, filled)))
        handed += arguments[len(self.parameters) :]
        try:
            self.prepare(
                grid, block, handed, shared_bytes=shared_bytes, cooperative=cooperative, order=order, seed=seed
            )()
        finally:
            for given, copy in copies:
                if given.flags.writeable:
                    given[...] = copy.reshape(given.shape)

    def prepare(
        self,
        grid: Sequence[int],
        block: Sequence[int],
        arguments: Sequence[Span | np.generic],
        *,
        shared_bytes: int = 0,
        cooperative: bool = False,
        order: Order = "ascending",
        seed: int = 1,
    ) -> Callable[[], None]:
        """A launch on the simulated device's memory, checked as far as it can be now; what it gives runs it."""
        threads = math.prod(block)
        if self.bound is not None and threads > self.bound:
            raise SimulatorError(f"{self.name}: {threads} threads exceed __launch_bounds__({self.bound})")
        if min(grid) < 1:
            raise SimulatorError(f"{self.name}: empty grid {tuple(grid)}")
        if len(arguments) != len(self._kinds):
            raise SimulatorError(f"{self.name} takes {len(self._kinds)} arguments, got {len(arguments)}")
        words: list[Any] = []
        spans: list[tuple[Span, Parameter]] = []
        for argument, kind, parameter in zip(arguments, self._kinds, self.parameters, strict=True):
            if kind != "p":
                words.append(self._scalar(argument, kind, parameter))
                continue
            if not isinstance(argument, Span):
                raise SimulatorError(f"{self.name}: {parameter.name} is a pointer, got {type(argument).__name__}")
            self._check_dtype(argument.dtype, parameter)
            words.append(np.array([argument.address], np.uint64))
            spans.append((argument, parameter))
        for number, (span, parameter) in enumerate(spans):
            for other, its in spans[:number]:
                apart = span.address >= other.address + other.bytes or other.address >= span.address + span.bytes
                self._check_alias(parameter, its, not apart and min(span.bytes, other.bytes) > 0)
        watched = (_Watched * len(spans))(
            *(_Watched(s.address, s.bytes, s.dtype.itemsize, p.constant, p.name.encode(), s.filled) for s, p in spans)
        )
        addresses = (ctypes.c_void_p * len(words))(*(word.ctypes.data for word in words))
        runtime = _runtime()
        launch = partial(
            runtime.cudasim_launch,
            self._run,
            self._module.image,
            addresses,
            (ctypes.c_uint * 3)(*(*grid, 1, 1)[:3]),
            (ctypes.c_uint * 3)(*(*block, 1, 1)[:3]),
            ctypes.c_uint64(shared_bytes),
            ORDERS.index(order),
            int(cooperative),
            int(self._module.checked),
            ctypes.c_uint64(seed),
            watched,
            len(watched),
        )

        def run() -> None:
            with _launching:
                failure = runtime.cudasim_message().decode() if launch() else ""
            if failure:
                raise SimulatorError(f"{self.name}: {failure}")

        # The launch knows addresses alone.
        run.keep = words, spans  # type: ignore[attr-defined]
        return run

    def _refuse_aliases(self, arguments: Sequence[Any]) -> None:
        pairs = [(a, p) for a, p in zip(arguments, self.parameters, strict=False) if isinstance(a, np.ndarray)]
        for number, (array, parameter) in enumerate(pairs):
            for other, its in pairs[:number]:
                self._check_alias(parameter, its, np.shares_memory(array, other))

    def _check_alias(self, parameter: Parameter, its: Parameter, shared: bool) -> None:
        """`__restrict__` promises that nothing else points to what the launch writes."""
        restricted = parameter.restricted or its.restricted
        if shared and restricted and not (parameter.constant and its.constant):
            raise SimulatorError(
                f"{self.name}: '{its.name}' and '{parameter.name}' alias, but one of them is __restrict__"
            )

    def _check_dtype(self, dtype: np.dtype, parameter: Parameter) -> None:
        wanted = _DTYPES.get(parameter.type)
        if wanted and dtype != np.dtype(wanted) and dtype.str[1:] != wanted:
            raise SimulatorError(f"{self.name}: {parameter.name} is {parameter.type}*, got {dtype}")

    def _scalar(self, argument: Any, kind: str, parameter: Parameter) -> np.ndarray:
        if not isinstance(argument, _SCALARS[kind]):
            raise SimulatorError(
                f"{self.name}: {parameter.name} is a {_SCALARS[kind][0].__name__}, got {type(argument).__name__}, "
                "which has another size"
            )
        return np.array([argument])


def _device_copy(array: np.ndarray) -> np.ndarray:
    """A copy at the same alignment with a margin around it."""
    memory = np.empty(array.nbytes + 2 * _MARGIN + 256, np.uint8)
    start = _MARGIN + (array.ctypes.data - (memory.ctypes.data + _MARGIN)) % 256
    copy = memory[start : start + array.nbytes].view(array.dtype)
    copy[...] = array.reshape(-1)
    return copy


class Module:
    """The kernels of one source, by name."""

    def __init__(self, source: str, checked: bool = True) -> None:
        _runtime()
        self.checked = checked
        kernels = _KERNEL.findall(source)
        if not kernels:
            raise SimulatorError('the source has no extern "C" __global__ function')
        exports = "\n".join(f"CUDASIM_EXPORT({name})" for _, name, _ in kernels)
        text = f"{source}\nCUDASIM_MODULE()\n{exports}\n"
        command = [*_COMPILE, *(_CHECKED if checked else _UNCHECKED), "-include", str(HERE / "cuda.h")]
        key = "\0".join([text, (HERE / "cuda.h").read_text(), *command])
        path = _folder() / f"{hashlib.sha256(key.encode()).hexdigest()[:20]}.cpp"
        if not path.exists():
            temporary = path.with_suffix(f".{os.getpid()}")
            temporary.write_text(text)
            os.replace(temporary, path)
        # In two steps: linking with -fsanitize=thread would add a runtime of its own.
        objects = _built(key, ".o", [*command, "-c", str(path)])
        self.library = ctypes.CDLL(str(_built(key, ".so", ["g++", "-shared", str(objects)])))
        self.image = ctypes.cast(self.library.cudasim_image, ctypes.c_void_p)
        places = (ctypes.c_void_p * 4)()
        self.library.cudasim_image(places)
        #: Of its variables in shared memory.
        self.shared_bytes = (places[1] or 0) - (places[0] or 0)
        defined = dict(_DEFINE.findall(source))
        self.kernels = {
            name: Kernel(self, name, defined.get(bound, bound), [_parameter(part) for part in parameters.split(",")])
            for bound, name, parameters in kernels
        }

    def __getitem__(self, name: str) -> Kernel:
        return self.kernels[name]


@cache
def compile_module(source: str, checked: bool = True) -> Module:
    """The module of a source; compiled once."""
    return Module(source, checked)
