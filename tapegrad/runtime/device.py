"""The one device protocol: what a program asks of the machine it runs on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True)
class MachineCode:
    """One compiled function: its name in the source, its symbol, and the object code, which several may share."""

    function: str
    symbol: str
    data: bytes


class LoadedCode(Protocol):
    """Machine code that is ready to run; it stays loaded as long as it is referenced."""

    #: The address of each function, by its name in the source.
    addresses: dict[str, int]
    #: Runs the entry function on the block at an address and returns its status.
    entry: Callable[[Any], int]

    def repeat(self, block: int, steps: int, moves: int, count: int, gathered: int, arrays: int) -> int:
        """Run the entry function several times in one native call and return the first status that is not 0.

        Before each step, rows of the ``arrays`` arrays at the address ``gathered`` are copied to where the program
        reads them; each has five words: the array, the bytes of a row, the numbers of the rows, how many, where they
        go. The third moves on to the next step. After each step, every one of the ``count`` pairs of words (word of the
        block, increment) at the address ``moves`` is added to the block.
        """
        ...


class Device(Protocol):
    """A place where arrays lie and programs run.

    A device compiles source to machine code, loads machine code, allocates, and says where memory lies. Programs hold a
    device and ask it for everything, so a further device is one more implementation of this protocol.
    """

    name: str

    def identity(self) -> str:
        """Everything about the machine that its code depends on: part of the key of a cached program."""
        ...

    def compile(self, source: str, functions: Sequence[str], name: str) -> tuple[MachineCode, ...]:
        """Compile the functions of a printed program."""
        ...

    def load(self, code: Sequence[MachineCode]) -> LoadedCode:
        """Make machine code ready to run."""
        ...

    def prepare(self, functions: Sequence[str]) -> None:
        """Begin to make library functions ready, while something else is compiled."""
        ...

    def library(self, function: str) -> int:
        """What a block's word holds for a library function."""
        ...

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        """A new array with any contents, its memory aligned for the device."""
        ...

    def address(self, array: Any) -> int:
        """Where an array's memory begins."""
        ...
