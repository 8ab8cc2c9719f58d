"""Compile CUDA C with g++ and launch its kernels on NumPy arrays.

`compile_module` gives a `Module`; ``module["name"](grid, block, arguments)`` launches. Arguments are NumPy arrays for
pointers and NumPy scalars for the rest, as CuPy wants them.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

HERE = Path(__file__).parent
ORDERS = ("ascending", "descending", "shuffled")
Order = Literal["ascending", "descending", "shuffled"]

_RUNTIME = ("scheduler.cpp", "memory.cpp", "simulator.h")
_COMPILE = ("g++", "-std=c++17", "-fPIC", "-w", "-fno-strict-aliasing", "-fno-exceptions", "-ffp-contract=fast")
_UNDEFINED = "alignment,bounds,signed-integer-overflow,integer-divide-by-zero,shift,float-cast-overflow"
_CHECKED = ("-O1", "-g0", "-fsanitize=thread", f"-fsanitize={_UNDEFINED}")
_UNCHECKED = ("-O2",)
_KERNEL = re.compile(
    r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\s*\(\s*(\w+)[^)]*\)\s*)?(\w+)\s*\(([^)]*)\)', re.DOTALL
)
_DEFINE = re.compile(r"^#define (\w+) (\d+)\s*$", re.MULTILINE)
_DTYPES = {
    "float": "f4",
    "double": "f8",
    "int": "i4",
    "unsigned": "u4",
    "long": "i8",
    "char": "i1",
    "bool": "b1",
}
_SCALARS: dict[str, tuple[type, ...]] = {
    "i": (np.int32, np.uint32),
    "l": (np.int64, np.uint64),
    "f": (np.float32,),
    "d": (np.float64,),
    "b": (np.bool_, np.int8, np.uint8),
}
#: Bytes before and behind each array in which every access is out of bounds.
_MARGIN = 1 << 16


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
        self._bound = int(bound) if bound.isdigit() else None
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
        threads = int(np.prod(block))
        if self._bound is not None and threads > self._bound:
            raise SimulatorError(f"{self.name}: {threads} threads exceed __launch_bounds__({self._bound})")
        if min(grid) < 1:
            raise SimulatorError(f"{self.name}: empty grid {tuple(grid)}")
        if len(arguments) != len(self._kinds):
            raise SimulatorError(f"{self.name} takes {len(self._kinds)} arguments, got {len(arguments)}")
        self._refuse_aliases(arguments)
        runtime = _runtime()
        runtime.cudasim_forget_regions()
        keep: list[Any] = []
        copies: list[tuple[np.ndarray, np.ndarray]] = []
        addresses = (ctypes.c_void_p * len(arguments))()
        for number, (argument, kind, parameter) in enumerate(zip(arguments, self._kinds, self.parameters, strict=True)):
            if kind == "p":
                copy = self._device_copy(argument, parameter)
                copies.append((argument, copy))
                keep += [copy, parameter.name.encode()]
                if self._module.checked:
                    filled = np.full(max(argument.size, 1), parameter.name not in uninitialised, np.uint8)
                    keep.append(filled)
                    runtime.cudasim_watch(
                        ctypes.c_void_p(copy.ctypes.data),
                        ctypes.c_uint64(argument.nbytes),
                        argument.itemsize,
                        keep[-2],
                        int(parameter.constant),
                        ctypes.c_void_p(filled.ctypes.data),
                    )
                word = np.array([copy.ctypes.data], np.uint64)
            else:
                word = self._scalar(argument, kind, parameter)
            keep.append(word)
            addresses[number] = word.ctypes.data
        failed = runtime.cudasim_launch(
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
        )
        for given, copy in copies:
            if given.flags.writeable:
                given[...] = copy.reshape(given.shape)
        if failed:
            raise SimulatorError(f"{self.name}: {runtime.cudasim_message().decode()}")

    def _refuse_aliases(self, arguments: Sequence[Any]) -> None:
        """`__restrict__` promises that nothing else points to what the launch writes."""
        pairs = [(a, p) for a, p in zip(arguments, self.parameters, strict=True) if isinstance(a, np.ndarray)]
        for number, (array, parameter) in enumerate(pairs):
            for other, its in pairs[:number]:
                restricted = parameter.restricted or its.restricted
                if restricted and not (parameter.constant and its.constant) and np.shares_memory(array, other):
                    raise SimulatorError(
                        f"{self.name}: '{its.name}' and '{parameter.name}' alias, but one of them is __restrict__"
                    )

    def _device_copy(self, array: Any, parameter: Parameter) -> np.ndarray:
        """A copy at the same alignment with a margin around it."""
        if not isinstance(array, np.ndarray):
            raise SimulatorError(f"{self.name}: {parameter.name} is a pointer, got {type(array).__name__}")
        wanted = _DTYPES.get(parameter.type)
        if wanted and array.dtype != np.dtype(wanted) and array.dtype.str[1:] != wanted:
            raise SimulatorError(f"{self.name}: {parameter.name} is {parameter.type}*, got {array.dtype}")
        if not array.flags.c_contiguous:
            raise SimulatorError(f"{self.name}: {parameter.name} is not C-contiguous")
        memory = np.empty(array.nbytes + 2 * _MARGIN + 256, np.uint8)
        start = _MARGIN + (array.ctypes.data - (memory.ctypes.data + _MARGIN)) % 256
        copy = memory[start : start + array.nbytes].view(array.dtype)
        copy[...] = array.reshape(-1)
        return copy

    def _scalar(self, argument: Any, kind: str, parameter: Parameter) -> np.ndarray:
        if not isinstance(argument, _SCALARS[kind]):
            raise SimulatorError(
                f"{self.name}: {parameter.name} is a {_SCALARS[kind][0].__name__}, got {type(argument).__name__}, "
                "which has another size"
            )
        return np.array([argument])


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
