"""CUDA's runtime as the simulated CuPy shows it: errors, memory, streams, capture, graphs, and what to let fail."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

from .device_memory import Exhausted, Memory
from .simulator import Order, SimulatorError

memory = Memory()


@dataclass
class Settings:
    """How kernels run - every access checked or not, which thread goes first - and what the machine is like."""

    checked: bool = True
    order: Order = "ascending"
    devices: int = 1
    capability: int = 90
    multiprocessors: int = 4
    shared_bytes: int = 227 << 10
    #: Registers that each kernel needs for a thread.
    registers: int = 32
    #: Versions of CUDA; a driver of 0 is one that is not there.
    driver: int = 13000
    runtime: int = 13000
    #: Whether CUDA's headers are here, with which CuPy compiles kernels of its own.
    headers: bool = False
    #: Whether copies read the host's pages when they run, not when they are called.
    reads_host_memory: bool = False
    #: Whether work waits until somebody waits for it, as it may on a GPU.
    behind: bool = False
    #: The error that lost the context, which every call raises from then on.
    lost: tuple[int, str] | None = None


settings = Settings()


@contextmanager
def changed(**changes: Any) -> Iterator[Settings]:
    """Within the block the settings differ; ``memory_limit`` is the memory that may be in use."""
    before = {field.name: getattr(settings, field.name) for field in fields(settings)}
    limit = memory.limit
    memory.limit = changes.pop("memory_limit", limit)
    try:
        for name, value in changes.items():
            setattr(settings, name, value)
        yield settings
    finally:
        try:
            drain()
        finally:
            memory.limit = limit
            for name, value in before.items():
                setattr(settings, name, value)


# Errors -------------------------------------------------------------------------------------------------------------


class CUDARuntimeError(RuntimeError):
    """An error of CUDA's runtime, with its number."""

    def __init__(self, status: int, text: str = "") -> None:
        self.status = status
        super().__init__(text)


class CUDADriverError(RuntimeError):
    """An error of CUDA's driver, with its number."""

    def __init__(self, status: int, text: str = "") -> None:
        self.status = status
        super().__init__(text)


class OutOfMemoryError(MemoryError):
    """CuPy's own."""


def call(what: str = "", *, captured: bool = False) -> None:
    """Every call of CUDA comes by here: it fails where the context is lost, and most are refused during a capture."""
    if settings.lost is not None:
        raise CUDARuntimeError(*settings.lost)
    if not captured and _state.capturing is not None:
        raise CUDARuntimeError(
            900, f"cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing ({what})"
        )


def compile_own(what: str) -> None:
    """CuPy compiles a kernel of its own for some work, which fails where CUDA's headers are missing."""
    if not settings.headers:
        raise SimulatorError(f"CuPy would compile a kernel of its own for {what}, and CUDA's headers need not be here")


# Memory -------------------------------------------------------------------------------------------------------------


class Block:
    """Memory that somebody owns; freed with its last array."""

    def __init__(self, count: int) -> None:
        call("allocation")
        try:
            self._stream = get_current_stream()
            self.ptr = memory.allocate(count, self._stream.ptr)
        except Exhausted as error:
            raise OutOfMemoryError(
                f"Out of memory allocating {count:,} bytes (allocated so far: {memory.used:,} bytes, "
                f"limit set to: {memory.limit:,} bytes)."
            ) from error
        self.size = count

    def __del__(self) -> None:
        if hasattr(self, "ptr"):
            with memory.lock:  # poisoned before another thread is given it
                self._stream._enqueue(memory.free(self.ptr, self._stream.ptr))


class MemoryPointer:
    """An address within memory that it keeps alive."""

    def __init__(self, mem: Any, offset: int) -> None:
        self.mem = mem
        self.ptr = mem.ptr + offset
        self.device_id = 0

    def __add__(self, offset: int) -> MemoryPointer:
        return MemoryPointer(self.mem, self.ptr - self.mem.ptr + offset)

    def copy_from_device_async(self, src: MemoryPointer, size: int, stream: Stream | None = None) -> None:
        """Copy bytes, and whether they hold anything, in the order of a stream."""
        call(captured=True)
        target, source = memory.offset(self.ptr), memory.offset(src.ptr)

        def work() -> None:
            for kept in (memory.bytes, memory.filled):
                kept[target : target + size] = kept[source : source + size].copy()

        submit(work, [(self.ptr, size), (src.ptr, size)], stream)


class MemoryPool:
    """The pool that blocks come from."""

    def used_bytes(self) -> int:
        """Bytes of arrays."""
        return memory.used

    def free_bytes(self) -> int:
        """Bytes that the pool keeps for later arrays."""
        return 0

    def free_all_blocks(self, stream: Stream | None = None) -> None:
        """Give back what is kept."""


def get_default_memory_pool() -> MemoryPool:
    """The one pool."""
    return MemoryPool()


def mem_get_info() -> tuple[int, int]:
    """Bytes that are free, and all."""
    call("memGetInfo", captured=True)
    return memory.limit - memory.used, memory.limit


# Streams and graphs -------------------------------------------------------------------------------------------------

#: One thread at a time runs what is pending, in its order.
_running = threading.RLock()
#: Every stream there is.
_all_streams: weakref.WeakSet[Stream] = weakref.WeakSet()
#: Something to do, and the memory that it points to.
Work = tuple[Callable[[], None], tuple[tuple[int, int], ...]]


class Stream:
    """A stream. Work runs at once, unless it is captured, or where streams are behind: then once it is waited for."""

    _numbers = itertools.count(2)
    null: Stream

    def __init__(
        self, null: bool = False, non_blocking: bool = False, ptds: bool = False, priority: int | None = None
    ) -> None:
        self.ptr = 0 if null else next(Stream._numbers)
        self.device_id = 0
        self.is_non_blocking = non_blocking
        self._record: list[Work] | None = None
        self._queue: deque[Callable[[], None]] = deque()
        _all_streams.add(self)

    def _enqueue(self, work: Callable[[], None]) -> None:
        if settings.behind or self._queue:
            self._queue.append(work)
        else:
            work()

    def _drain(self) -> None:
        """Run what is pending; the default stream and those that block wait for each other."""
        if not self.is_non_blocking:
            for other in list(_all_streams):
                if other is not self and not other.is_non_blocking and 0 in (self.ptr, other.ptr):
                    other._run_queue()
        self._run_queue()

    def _run_queue(self) -> None:
        with _running:
            while self._queue:
                self._queue.popleft()()

    def __enter__(self) -> Stream:
        _state.streams.append(self)
        return self

    def __exit__(self, *args: object) -> None:
        _state.streams.pop()

    def use(self) -> Stream:
        """Make this stream the current one."""
        _state.streams[-1] = self
        return self

    @property
    def done(self) -> bool:
        """Whether nothing is pending."""
        call("query")
        return not self._queue

    def synchronize(self) -> None:
        """Wait for what is pending."""
        call("synchronize")
        self._drain()

    def begin_capture(self, mode: int | None = None) -> None:
        """Record what follows on this stream."""
        if self.ptr in (0, 1):
            raise RuntimeError("cannot capture on the default (legacy) stream")
        call("begin_capture")
        self._record = []
        _state.capturing = self

    def end_capture(self) -> Graph:
        """What was recorded."""
        if self._record is None:
            raise CUDARuntimeError(401, "cudaErrorIllegalState: the stream is not capturing")
        record, self._record = self._record, None
        _state.capturing = None
        call(captured=True)
        graph = Graph.__new__(Graph)
        graph._record = record
        return graph

    def is_capturing(self) -> bool:
        """Whether this stream records."""
        return self._record is not None


class Graph:
    """Recorded work, replayed by `launch`."""

    _record: list[Work]

    def __init__(self, *args: object, **kwargs: object) -> None:
        raise NotImplementedError("currently this class cannot be initiated by the user")

    def launch(self, stream: Stream | None = None) -> None:
        """Replay. What a graph points to must belong to somebody: CuPy's pool hands freed memory out again."""
        call("a graph within a graph")
        for work, spans in self._record:
            for address, count in spans:
                if count and not memory.holds(address, count):
                    raise SimulatorError(f"a graph is replayed that points to {count} bytes of freed memory")
            submit(work, spans, stream)

    def upload(self, stream: Stream | None = None) -> None:
        """Make ready; nothing needs to be done here."""
        call("upload")


Stream.null = Stream(null=True)


class _State(threading.local):
    """What each thread has of its own."""

    def __init__(self) -> None:
        self.streams = [Stream.null]
        self.capturing: Stream | None = None


_state = _State()


def get_current_stream(device_id: int = -1) -> Stream:
    """The stream of the innermost ``with``."""
    return _state.streams[-1]


def submit(work: Callable[[], None], spans: Sequence[tuple[int, int]], stream: Stream | None = None) -> None:
    """Run work on a stream, the current one unless given, or record it."""
    stream = stream or get_current_stream()
    if stream._record is not None:
        stream._record.append((work, tuple(spans)))
        return
    call("work on a stream that is not the captured one")
    if settings.behind and not stream.is_non_blocking:
        # The default stream waits for those that block, and they for it.
        for other in list(_all_streams):
            if other is not stream and not other.is_non_blocking and 0 in (stream.ptr, other.ptr):
                other._run_queue()
    stream._enqueue(work)


def drain() -> None:
    """Run what is pending on any stream."""
    for stream in list(_all_streams):
        stream._drain()
