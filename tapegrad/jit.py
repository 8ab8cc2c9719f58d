"""``@jit``: trace once, guard, call. State goes in and out in place; one call is one native call."""

from __future__ import annotations

import functools
import threading
import types
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np

from tapegrad import config, placement, precision, pytree, sequences, tape
from tapegrad.captures import Devices
from tapegrad.errors import OptionError
from tapegrad.guards import collect_guards
from tapegrad.interop import asarray, is_of_others
from tapegrad.ir.graph import Graph
from tapegrad.quick_calls import MISSED, QuickCall
from tapegrad.runtime.counters import counters
from tapegrad.runtime.devices import CPU, CUDA_MODES, CudaMode
from tapegrad.specialization import Specialization
from tapegrad.tensor import Tensor
from tapegrad.tracing import Argument, argument_paths, describe
from tapegrad.tracing import trace as _trace

if TYPE_CHECKING:
    from tapegrad.background import Compilation
    from tapegrad.compiler.program import Program
    from tapegrad.explanation import Explanation

Function = TypeVar("Function", bound=Callable[..., Any])

#: Traces of one function after which it warns that it is being traced again and again.
MANY_TRACES = 8


_REMEMBERED_CALLS = 256


class RetraceWarning(UserWarning):
    """A jitted function is traced again and again; the message says what changes."""


@dataclass(frozen=True)
class Stats:
    """Counts of one jitted function, or of the process.

    Attributes
    ----------
    traces : int
        Times the function was run to record it.
    compiles : int
        Times LLVM (or NVRTC) ran.
    cache_hits : int
        Programs that came from the disk cache.
    calls : int
        Runs of programs; a scan of 100 steps counts 100.
    kernels : int
        Kernels that these calls ran.
    """

    traces: int
    compiles: int
    cache_hits: int
    calls: int
    kernels: int


def _shapes(leaves: Sequence[Any], arguments: Sequence[Argument]) -> list[tuple[Any, ...]]:
    """The shapes of the arguments that are not static."""
    return [
        leaf._entry.shape if isinstance(leaf, Tensor) else np.shape(leaf)
        for leaf, argument in zip(leaves, arguments, strict=True)
        if argument.kind != "static"
    ]


def _requires_grad(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _names_in_order(function: Callable[..., Any]) -> tuple[str, ...]:
    """The arguments of a Python function that may be given by place or by name."""
    code = getattr(function, "__code__", None)
    if code is None or code.co_posonlyargcount:
        return ()
    return tuple(code.co_varnames[isinstance(function, types.MethodType) : code.co_argcount])


class Jitted:
    """A function compiled as one program; made by `jit`.

    Calling it runs the program for these arguments: the first call with a new structure, dtype or static value traces
    and compiles, every other call is one native call.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        static_argnames: Sequence[str] = (),
        keep_grads: bool = False,
        background: bool = False,
        cuda_mode: CudaMode | None = None,
    ) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self._names = _names_in_order(function)
        self._static = frozenset([static_argnames] if isinstance(static_argnames, str) else static_argnames)
        self._keep_grads = keep_grads
        self._background = background
        self._cuda_mode = cuda_mode
        if cuda_mode not in (None, *CUDA_MODES):
            raise OptionError(f"jit: cuda_mode is {cuda_mode!r}, not one of {', '.join(CUDA_MODES)}")
        self._specializations: dict[Any, list[Specialization]] = {}
        self._counts = dict.fromkeys(("traces", "compiles", "cache_hits", "calls", "kernels"), 0)
        self._reasons: list[str] = []
        self._latest: Specialization | None = None
        self._served: dict[tuple[Any, ...], Specialization] = {}
        self._quick: QuickCall | None = None
        self._lock = threading.RLock()
        if self._static:
            names = function.__code__.co_varnames[: function.__code__.co_argcount + function.__code__.co_kwonlyargcount]
            unknown = self._static - set(names)
            if unknown:
                raise OptionError(f"jit: {function.__name__} has no argument named {', '.join(sorted(unknown))}")

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs:
            args, kwargs = self._in_order(args, kwargs)
        quick = self._quick
        if quick is not None and not kwargs and not config.scopes.entered:
            result = quick.call(args)
            if result is not MISSED:
                return result
        return self._call(args, kwargs)

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The long way."""
        if tape.local.trace is not None or tape.local.differentiating:
            # Inside another trace it is part of that program, and what is differentiated has to be recorded.
            return self._function(*args, **kwargs)
        found = self._served_before(args, kwargs)
        if found is None:
            if tape.local.grad_enabled and any(map(_requires_grad, pytree.flatten((args, kwargs))[0])):
                # A gradient must reach these arguments: the call joins the tape.
                return self._function(*args, **kwargs)
            found = self._specialize(args, kwargs)
        leaves, specialization = found
        result = specialization.run(leaves, not kwargs and len(leaves) == len(args))
        self._quick = None if config.scopes.entered else specialization.quick
        return result

    def scan(self, *args: Any) -> Any:
        """Run many steps in one native call.

        Parameters
        ----------
        *args : array_like
            As for one call, each with a leading axis: the steps. All have the same number of steps.

        Returns
        -------
        Tensor or pytree of Tensor
            The results of all steps, stacked along a leading axis.

        Examples
        --------
        >>> import numpy as np, tapegrad as tg
        >>> @tg.jit
        ... def double(x):
        ...     return 2 * x
        >>> double.scan(np.arange(3.0)).tolist()
        [0.0, 2.0, 4.0]
        """
        leaves, structure = pytree.flatten((args, {}))
        return sequences.scan(self, leaves, structure)

    def epochs(
        self,
        *args: Any,
        batch_size: int,
        epochs: int = 1,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        first_epoch: int = 0,
        per_step: Sequence[Any] = (),
        progress: sequences.Progress | None = None,
    ) -> Any:
        """Run whole epochs in few native calls: batches are gathered in native code, by rows drawn beforehand.

        The bits are those of single calls in the loop over a `tapegrad.models.data.DataLoader` with this seed. A native
        call lasts about a tenth of a second; between two of them Ctrl-C works.

        Parameters
        ----------
        *args : array_like
            Examples, labels and whatever else belongs to a row, which is an element along the first axis.
        batch_size : int
            Rows in a batch. The last batch of an epoch may be shorter.
        epochs : int
        shuffle : bool
            Whether each epoch has an order of its own, drawn from the seed and the epoch's number.
        seed : int
        drop_last : bool
            Whether to leave out a last batch that is shorter.
        first_epoch : int
            The number of the first epoch, to go on where another run stopped.
        per_step : sequence of array_like
            Further arguments of the function, each with one element for each step of all epochs: a learning rate.
        progress : callable, optional
            Called between native calls, as ``progress(steps, result)``: how many steps the last one did, and what the
            last step gave (its first result, as NumPy has it).

        Returns
        -------
        Tensor or pytree of Tensor
            The results of all steps, stacked along two leading axes: epochs, and steps in an epoch.

        Raises
        ------
        OptionError
            Where ``batch_size`` or ``epochs`` is less than 1.
        ShapeError
            Where arrays do not have the same number of rows, there is no batch, or the results of a short batch have
            another shape than the others.

        Examples
        --------
        >>> import numpy as np, tapegrad as tg
        >>> total = tg.Tensor(0.0)
        >>> @tg.jit
        ... def add(x):
        ...     total.data = total + x.sum()
        ...     return total
        >>> add.epochs(np.arange(5.0, dtype="float32"), batch_size=2, epochs=2, shuffle=False).tolist()
        [[1.0, 6.0, 10.0], [11.0, 16.0, 20.0]]
        """
        return sequences.epochs(
            self,
            args,
            per_step,
            batch_size=batch_size,
            epochs=epochs,
            shuffle=shuffle,
            seed=seed,
            drop_last=drop_last,
            first_epoch=first_epoch,
            progress=progress,
        )

    def _served_before(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Sequence[Any], Specialization] | None:
        """The specialization that served the last call with arrays of these shapes and dtypes, if it still does."""
        if kwargs or self._static:
            return None
        key: list[Any] = [precision.current(), config.default_dtype()]
        for value in args:
            kind = type(value)
            if kind is Tensor:
                entry = value._entry
                if entry.requires_grad:
                    return None
                key += (entry.shape, entry.dtype, entry.device, value._weak)
            elif kind is np.ndarray:
                key += (value.shape, value.dtype)
            else:
                return None
        quick = tuple(key)
        found = self._served.get(quick)
        if found is not None and found.unchanged() is None:
            return args, found
        leaves, found = self._specialize(args, kwargs)
        if len(self._served) >= _REMEMBERED_CALLS:
            self._served.clear()
        self._served[quick] = found
        return leaves, found

    def _in_order(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments given by name in their places, where none before them is left out."""
        names = self._names[len(args) : len(args) + len(kwargs)]
        if kwargs.keys() != set(names):
            return args, kwargs
        return (*args, *[kwargs[name] for name in names]), {}

    # Specializing -------------------------------------------------------------------------------------------

    def _specialize(self, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[list[Any], Specialization]:
        args, kwargs = self._in_order(tuple(args), kwargs)
        leaves, structure = pytree.flatten((args, kwargs))
        return leaves, self._find(leaves, structure, args, kwargs)

    def _find(self, leaves: list[Any], structure: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Specialization:
        paths = argument_paths(self._function, args, kwargs) if self._static else None
        arguments: list[Argument] = []
        for number, leaf in enumerate(leaves):
            static = paths is not None and paths[number].split("[")[0] in self._static
            if not static and is_of_others(leaf):
                leaf = leaves[number] = asarray(leaf)
            arguments.append(describe(leaf, "", static))
        key = (structure, tuple([argument.key for argument in arguments]), precision.current(), config.default_dtype())
        shapes = _shapes(leaves, arguments)
        known = self._specializations.get(key, [])
        reason = None
        for specialization in known:
            reason = specialization.mismatch(shapes)
            if reason is None:
                return specialization
        with self._lock:
            for specialization in self._specializations.get(key, []):
                # Another thread may have traced it meanwhile.
                if specialization not in known and specialization.mismatch(shapes) is None:
                    return specialization
            return self._add(key, arguments, leaves, structure, shapes, reason, args, kwargs)

    def _add(
        self,
        key: Any,
        arguments: list[Argument],
        leaves: list[Any],
        structure: Any,
        shapes: list[tuple[int, ...]],
        reason: str | None,
        args: Sequence[Any],
        kwargs: dict[str, Any],
    ) -> Specialization:
        paths = argument_paths(self._function, args, kwargs)
        named = [
            describe(leaf, path, a.kind == "static") for leaf, path, a in zip(leaves, paths, arguments, strict=True)
        ]
        if reason is None and self._specializations:
            reason = self._explain_key(key, named)
        as_table = not config.debug_nans
        traced = _trace(self._function, named, shapes, structure, self._keep_grads, as_table=as_table)
        static = [argument.value for argument in named if argument.kind == "static"]
        guards, owners = collect_guards(self._function, static, Devices(traced.captured, traced.device is None))
        device = traced.device or placement.get_default_device()
        for tensor, _ in traced.written:
            tensor._make_cell()
        name = self._function.__name__
        program: Program | Compilation
        if traced.table is not None:
            program = traced.table.program(traced.graph, name)
        else:
            # The compiler is imported when the first function is compiled.
            from tapegrad.background import compile_now, program_or_compilation

            make = program_or_compilation if self._background else compile_now
            program = make(traced.graph, name, device, self._cuda_mode)
        specialization = Specialization(traced, guards, owners, device, program, self._count_program)
        self._counts["traces"] += 1
        counters.add("traces")
        if reason is not None:
            self._reasons.append(reason)
            if self._counts["traces"] == MANY_TRACES:
                warnings.warn(
                    f"{self._function.__qualname__} was traced {MANY_TRACES} times; the last time because {reason}",
                    RetraceWarning,
                    stacklevel=5,
                )
        # The newest first: what changed once, changed for good more often than not.
        self._latest = specialization
        self._specializations[key] = [specialization, *self._specializations.get(key, [])]
        return specialization

    def _count_program(self, program: Program) -> None:
        self._counts["compiles" if program.compiled_now else "cache_hits"] += 1

    def _explain_key(self, key: Any, arguments: list[Argument]) -> str:
        """Which argument made the key a new one."""
        *rest, rounding, dtype = key
        same = [known[2:] for known in self._specializations if [*known[:2]] == rest]
        if any(its == dtype for _, its in same):
            return f"products of float32 now round their operands to {rounding}"
        if same:
            return f"the default dtype is now {dtype}"
        for specializations in self._specializations.values():
            before = specializations[0].traced.arguments
            if len(before) != len(arguments):
                continue
            for old, new in zip(before, arguments, strict=True):
                if old.key != new.key:
                    return f"argument {new.path} was {_describe(old)} and is {_describe(new)}"
        return "the arguments are nested in another way"

    # Looking inside -----------------------------------------------------------------------------------------

    def explain(self, *args: Any, **kwargs: Any) -> Explanation:
        """Every stage of the program for these arguments; see `tapegrad.explain`."""
        from tapegrad.explanation import Explanation

        leaves, specialization = self._specialize(args, kwargs)
        traced = specialization.traced
        if traced.table is not None:
            # A table was written without a graph; people want to see one.
            shapes = _shapes(leaves, traced.arguments)
            structure = pytree.flatten((tuple(args), kwargs))[1]
            traced = _trace(self._function, traced.arguments, shapes, structure, self._keep_grads)
        return Explanation(specialization.program, traced, specialization.inputs(leaves), tuple(self._reasons))

    def program(self, *args: Any, **kwargs: Any) -> Program | None:
        """The program for these arguments; without any, the one traced last, if there is one."""
        if args or kwargs:
            return self._specialize(args, kwargs)[1].program
        return self._latest.program if self._latest is not None else None

    def stats(self) -> Stats:
        """Counts of traces, compiles, cache hits, calls and kernels."""
        counts = dict(self._counts)
        for specializations in self._specializations.values():
            for specialization in specializations:
                for name, amount in specialization.counts().items():
                    counts[name] += amount
        return Stats(**counts)

    @property
    def compiles(self) -> int:
        """Times LLVM ran for this function."""
        return self._counts["compiles"]

    @property
    def retraces(self) -> tuple[str, ...]:
        """Why each trace after the first was made."""
        return tuple(self._reasons)


def _describe(argument: Argument) -> str:
    if argument.kind == "static":
        return repr(argument.value)
    if argument.kind == "array":
        on = "" if argument.device in (None, CPU) else f" on {argument.device}"
        return f"a {argument.dtype} array with {argument.ndim} axes{on}"
    return f"a Python {argument.kind}"


@overload
def jit(function: Callable[..., Any]) -> Jitted: ...


@overload
def jit(
    *,
    static_argnames: Sequence[str] = ...,
    keep_grads: bool = ...,
    background: bool = ...,
    cuda_mode: CudaMode | None = ...,
) -> Callable[[Callable[..., Any]], Jitted]: ...


def jit(
    function: Callable[..., Any] | None = None,
    *,
    static_argnames: Sequence[str] = (),
    keep_grads: bool = False,
    background: bool = False,
    cuda_mode: CudaMode | None = None,
) -> Any:
    """Compile a function - forward, backward and updates together - as one program.

    The function is run once on symbolic arguments. Parameters, optimizer state and random generators that it
    uses are captured: their values are read at each call and updated in place. The sizes of arrays stay symbolic;
    Python numbers among the arguments are runtime scalars; bool, str, None and ``static_argnames`` are part of
    the program's key. Results carry no history, so ``backward()`` belongs inside;
    a call whose arguments require gradients joins the tape instead of running its program.

    The program runs on the device of the Tensors among the arguments and of those that the function uses; NumPy arrays
    go along with them. Where there are none, that is the default device.

    Parameters
    ----------
    function : callable
    static_argnames : sequence of str
        Arguments whose value shapes the program; a new value traces again.
    keep_grads : bool
        Keep ``grad`` of the parameters that an optimizer updates.
    background : bool
        Compile in a thread, and interpret the function with NumPy until the program is ready. Interpreted and compiled
        code agree to rounding, so the bits then depend on when that was. ``scan`` and ``epochs`` wait for the program.
        Where compiling fails, the next call raises.
    cuda_mode : {"launches", "graph", "block", "grid"}, optional
        How ``scan`` and ``epochs`` repeat steps on a GPU: kernel after kernel; as CUDA graphs; all steps in one launch
        of one block that keeps parameters in shared memory; all steps in one launch of a grid. By default the costs of
        the step decide, and ``explain`` says how.

    Returns
    -------
    Jitted
        Called like the function.

    Raises
    ------
    TracingError
        Where the function reads a value while it is traced.
    DeviceError
        Where Tensors of several devices meet.

    Examples
    --------
    >>> import tapegrad as tg
    >>> @tg.jit
    ... def area(radius):
    ...     return 3.0 * radius * radius
    >>> area(2.0).item(), area(1.0).item(), area.stats().traces
    (12.0, 3.0, 1)
    """
    if function is None:
        return lambda inner: Jitted(inner, static_argnames, keep_grads, background, cuda_mode)
    if isinstance(function, Jitted):
        return function
    return Jitted(function, static_argnames, keep_grads, background, cuda_mode)


def trace(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Graph:
    """The graph that ``function`` records for these arguments, derivatives expanded; nothing runs.

    Parameters
    ----------
    function : callable or Jitted
    *args, **kwargs : array_like
        Their sizes become symbols.

    Returns
    -------
    Graph
        Prints as text; ``.formula()`` prints formulas.

    Examples
    --------
    >>> import tapegrad as tg
    >>> print(tg.trace(lambda a: tg.tanh(a), tg.Tensor(3.0)))
    graph {
      %0: f32[]  # a
      %1 = tanh(%0): f32[] ...
      return %1
    }
    """
    jitted = jit(function)
    leaves, structure = pytree.flatten((args, kwargs))
    leaves = [asarray(leaf) if is_of_others(leaf) else leaf for leaf in leaves]
    paths = argument_paths(jitted._function, args, kwargs)
    arguments = [
        describe(leaf, path, path.split("[")[0] in jitted._static) for leaf, path in zip(leaves, paths, strict=True)
    ]
    return _trace(jitted._function, arguments, _shapes(leaves, arguments), structure, jitted._keep_grads).graph


def explain(step: Callable[..., Any], *args: Any, **kwargs: Any) -> Explanation:
    """Every stage of the program that ``step`` runs for these arguments; the step itself does not run.

    Parameters
    ----------
    step : Jitted or callable
    *args, **kwargs : array_like

    Returns
    -------
    Explanation
        Prints every stage; has ``kernels``, ``arena_bytes``, ``native_calls``, ``source``.

    Examples
    --------
    >>> import tapegrad as tg
    >>> explanation = tg.explain(tg.jit(lambda x: tg.exp(x) + 1), tg.Tensor([1.0, 2.0]))
    >>> len(explanation.kernels), explanation.native_calls
    (1, 1)
    """
    return jit(step).explain(*args, **kwargs)


def stats() -> Stats:
    """Counts of the whole process: every jitted function and every tape.

    Examples
    --------
    >>> import tapegrad as tg
    >>> before = tg.stats().calls
    >>> tg.jit(lambda x: x + 1)(1.0).item()
    2.0
    >>> tg.stats().calls - before
    1
    """
    return Stats(**{name: counters[name] for name in ("traces", "compiles", "cache_hits", "calls", "kernels")})
