"""Tensor: what the user holds. Each method records; reading a value runs the tape."""

from __future__ import annotations

import operator
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Union, cast

import numpy as np

from tapegrad import config, tape
from tapegrad.errors import (
    AxisError,
    BoundsError,
    DeviceError,
    DTypeError,
    GradientError,
    InPlaceError,
    ShapeError,
    TapegradError,
    TracingError,
)
from tapegrad.ir import sizes
from tapegrad.ir.sizes import Shape, Size, SizeExpr
from tapegrad.primitives import BOOL, FLOAT32, FLOAT64, INT32, INT64, UINT8, normalize_axis, shape_text
from tapegrad.tape import Entry

if TYPE_CHECKING:
    from tapegrad.methods import TensorMethods
else:

    class TensorMethods:
        """The functions that are methods too; `tapegrad.functions` puts them here."""

        __slots__ = ()


DTYPES = (FLOAT32, FLOAT64, INT32, INT64, UINT8, BOOL)
Number = Union[bool, int, float]
#: What an operation takes where it wants an array.
TensorLike = Union["Tensor", "Dim", np.ndarray, Number, Sequence[Any]]


class _Consumed:
    """The ``grad`` of a parameter after a jitted step that used its gradient up."""


CONSUMED = _Consumed()


class Dim:
    """A size inside ``@jit`` that is only known when the program runs.

    Arithmetic stays symbolic. Python itself asking for the number (``range``, ``int``, ``len``, a comparison) pins the
    axis: the program is then for this size alone, and another size traces once more. Division by ``/`` gives a
    runtime scalar.

    Examples
    --------
    >>> import numpy as np, tapegrad as tg
    >>> @tg.jit
    ... def mean(x):
    ...     return x.sum() / x.shape[0]
    >>> mean(np.ones(4, "float32")).item(), mean(np.ones(9, "float32")).item()
    (1.0, 1.0)
    >>> mean.stats().traces
    1
    """

    __slots__ = ("expression",)

    def __init__(self, expression: SizeExpr) -> None:
        self.expression = expression

    def _number(self, reason: str) -> int:
        bindings = sizes.active_bindings()
        if bindings is None:
            raise TracingError(f"the size {self.expression} was kept after its trace ended; ask for .shape inside the function")
        return bindings.pin(self.expression, reason)

    def __index__(self) -> int:
        return self._number("Python asked for the number of this axis")

    __int__ = __index__

    def __float__(self) -> float:
        return float(self._number("float() asked for the number of this axis"))

    def __bool__(self) -> bool:
        return self._number("a condition asked for the number of this axis") != 0

    def __hash__(self) -> int:
        return hash(self._number("hash() asked for the number of this axis"))

    def __repr__(self) -> str:
        return f"Dim({self.expression})"

    def __truediv__(self, other: Any) -> Tensor:
        return as_tensor(self) / other

    def __rtruediv__(self, other: Any) -> Tensor:
        return other / as_tensor(self)


def _dim_arithmetic(operation: Callable[[Any, Any], Any], swapped: bool) -> Callable[[Dim, Any], Any]:
    def method(self: Dim, other: Any) -> Any:
        if isinstance(other, Tensor | float):
            mine = as_tensor(self)
            return operation(other, mine) if swapped else operation(mine, other)
        if not isinstance(other, Dim | int | np.integer):
            return NotImplemented
        mine_size, other_size = self.expression, as_size(other)
        return from_size(operation(other_size, mine_size) if swapped else operation(mine_size, other_size))

    return method


def _dim_comparison(operation: Callable[[Any, Any], bool], symbol: str) -> Callable[[Dim, Any], Any]:
    def method(self: Dim, other: Any) -> Any:
        if isinstance(other, Dim) and other.expression == self.expression:
            return operation(0, 0)
        if not isinstance(other, Dim | int | float | np.integer):
            return NotImplemented
        return operation(self._number(f"the comparison {symbol} asked for the number of this axis"), other)

    return method


for _name, _operation in {"add": operator.add, "sub": operator.sub, "mul": operator.mul, "floordiv": operator.floordiv}.items():
    setattr(Dim, f"__{_name}__", _dim_arithmetic(_operation, swapped=False))
    setattr(Dim, f"__r{_name}__", _dim_arithmetic(_operation, swapped=True))
for _name, _symbol in {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}.items():
    setattr(Dim, f"__{_name}__", _dim_comparison(getattr(operator, _name), _symbol))


def as_size(value: Any) -> Size:
    """A Python integer or a `Dim` as a size."""
    if isinstance(value, Dim):
        return value.expression
    if isinstance(value, SizeExpr):
        return value
    return operator.index(value)


def from_size(size: Size) -> Any:
    """A size as the user sees it: an int, or a `Dim`."""
    bindings = sizes.active_bindings()
    resolved = bindings.resolve(size) if bindings is not None else size
    return resolved if isinstance(resolved, int) else Dim(resolved)


def as_shape(shape: Any) -> Shape:
    """An int, a `Dim` or a sequence of them as a shape."""
    if isinstance(shape, Dim | int | np.integer):
        return (as_size(shape),)
    return tuple(as_size(size) for size in shape)


def check_device(device: object) -> None:
    """Refuse a device that this version does not have."""
    if device not in (None, "cpu"):
        raise DeviceError(f"device {device!r} is not available; this version runs on 'cpu'")


def _array(data: Any, dtype: Any) -> np.ndarray:
    """A private, C-contiguous, native array of ``data`` in one of our dtypes."""
    if isinstance(data, np.ndarray | np.generic):
        wanted = np.dtype(dtype) if dtype is not None else data.dtype.newbyteorder("=")
    else:
        try:
            plain = np.asarray(data)
        except ValueError as error:
            raise ShapeError(f"Tensor: the nested sequence is not rectangular ({error})") from None
        if plain.dtype == object:
            raise DTypeError(f"Tensor: cannot make an array of {type(data).__name__}; give numbers or a NumPy array")
        holds_arrays = isinstance(data, list | tuple) and any(isinstance(item, np.ndarray | np.generic) for item in data)
        inferred = config.default_dtype() if plain.dtype.kind == "f" and not holds_arrays else plain.dtype
        if plain.size == 0 and not holds_arrays and plain.dtype == FLOAT64:
            inferred = config.default_dtype()
        data, wanted = plain, np.dtype(dtype) if dtype is not None else inferred
    if wanted not in DTYPES:
        names = ", ".join(str(known) for known in DTYPES)
        raise DTypeError(f"Tensor: dtype {wanted} is not supported; cast to one of {names}")
    return np.array(data, dtype=wanted, order="C", copy=True)


def as_dtype(dtype: Any) -> np.dtype:
    """A dtype of ours from whatever NumPy accepts as one."""
    try:
        wanted: np.dtype = np.dtype(dtype)
    except TypeError:
        raise DTypeError(f"{dtype!r} is not a dtype") from None
    if wanted not in DTYPES:
        raise DTypeError(f"dtype {wanted} is not supported; use one of {', '.join(str(known) for known in DTYPES)}")
    return wanted


class Tensor(TensorMethods):
    """An array whose operations are recorded on a tape.

    Parameters
    ----------
    data : array_like
        Numbers, nested lists, a NumPy array (copied) or a Tensor. Python floats take the default dtype, float32.
    dtype : dtype, optional
        float32, float64, int32, int64, uint8 or bool.
    device : str, optional
        ``"cpu"``.
    requires_grad : bool
        Whether ``backward()`` fills ``grad``; only for floating dtypes.
    name : str, optional
        The name that graphs and formulas print.

    Raises
    ------
    DTypeError, ShapeError, DeviceError

    Examples
    --------
    >>> import tapegrad as tg
    >>> a = tg.Tensor([1.0, 2.0], requires_grad=True)
    >>> (a * a).sum().backward()
    >>> a.grad
    Tensor([2., 4.], dtype=float32)
    """

    __slots__ = ("__weakref__", "_cell", "_entry", "_grad", "_leaf", "_storage", "_weak")
    __array_priority__ = 1000

    _entry: Entry
    _grad: Tensor | _Consumed | None

    def __init__(
        self,
        data: Any,
        dtype: Any = None,
        device: str | None = None,
        requires_grad: bool = False,
        name: str | None = None,
    ) -> None:
        check_device(device)
        if isinstance(data, Tensor):
            source = data.detach() if dtype is None else data.detach().astype(dtype)
            entry = source._entry
        else:
            entry = tape.leaf(_array(data, dtype))
            if tape.local.trace is not None and isinstance(data, np.ndarray) and dtype in (None, data.dtype):
                tape.local.trace.captured.setdefault(entry, CapturedArray(data, name))
        self._start(entry)
        if name is not None:
            entry.name = name
        if requires_grad:
            self.requires_grad = True

    def _start(self, entry: Entry) -> None:
        self._entry = entry
        entry.handles += 1
        self._grad = None
        self._leaf = False
        self._weak = False
        self._storage: np.ndarray | None = None
        self._cell: Entry | None = None

    def __del__(self) -> None:
        try:
            self._entry.handles -= 1
        except AttributeError:  # the constructor raised
            return

    # The entry and the storage ----------------------------------------------------------------------------

    def _rebind(self, entry: Entry) -> None:
        """Make this Tensor stand for another entry: a new version."""
        old = self._entry
        trace = tape.local.trace
        if trace is not None and id(self) not in trace.entries:
            trace.entries[id(self)] = (self, old)
        entry.handles += 1
        old.handles -= 1
        self._entry = entry
        if entry.name is None:
            entry.name = old.name
        if self._leaf or self._storage is not None:
            entry.owner = weakref.ref(self)

    def _make_cell(self, storage: np.ndarray | None = None) -> np.ndarray:
        """Give this Tensor a buffer of its own that programs update in place; `storage` may be part of a flat one."""
        value = self._value()
        if storage is None:
            if self._storage is not None:
                return self._storage
            storage = np.empty_like(value)
        storage[...] = value
        if self._cell is not None and self._cell is not self._entry:
            self._cell = None
        self._storage = storage
        self._expose()
        return storage

    def _expose(self) -> None:
        """Let the entry's value be the storage itself, under an entry that nobody else holds."""
        entry = tape.leaf(cast(np.ndarray, self._storage))
        entry.requires_grad = self._leaf
        self._rebind(entry)
        entry.owner = weakref.ref(self)
        self._cell = entry

    def _commit(self) -> None:
        """Write a realized new version into the storage; whoever holds the version before keeps its value."""
        storage = self._storage
        entry = self._entry
        if storage is None or entry.value is None or entry.value is storage:
            return
        self._release()
        storage[...] = entry.value
        self._expose()

    def _revert(self, failed: Entry) -> None:
        """Give up a version that could not be computed."""
        if self._entry is failed and self._cell is not None:
            self._rebind(self._cell)

    def _exclusive_storage(self) -> np.ndarray:
        """The storage with the current value in it, seen by nobody else: a program may overwrite it."""
        if self._entry is not self._cell:
            self._make_cell()
            self._value()
            self._commit()
        self._release()
        return cast(np.ndarray, self._storage)

    def _release(self) -> None:
        """Before the storage is overwritten: a version that somebody else still holds gets a copy."""
        cell = self._cell
        # 3: this Tensor's _cell, its _entry if the version is current, and the argument of getrefcount.
        if cell is not None and sys.getrefcount(cell) > (4 if self._entry is cell else 3):
            cell.value = cast(np.ndarray, self._storage).copy()
            if self._entry is cell:
                self._expose()

    def _value(self) -> np.ndarray:
        """The value, running the tape if it must; not to be changed or shown to the user."""
        if self._entry.value is None or tape.local.trace is not None:
            tape.run([self._entry])
        value = self._entry.value
        if value is None:
            raise GradientError("this Tensor was dropped by a failed run of the tape; compute it again")
        return value

    def _outer_value(self) -> np.ndarray:
        """The value of a Tensor from outside the trace that runs."""
        trace, tape.local.trace = tape.local.trace, None
        try:
            with sizes.using_bindings(None):
                return self._value()
        finally:
            tape.local.trace = trace

    # What it is ----------------------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[Any, ...]:
        """The sizes of the axes: ints, inside ``@jit`` also `Dim`."""
        shape = self._entry.shape
        if all(type(size) is int for size in shape):
            return shape
        return tuple(from_size(size) for size in shape)

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self._entry.shape)

    @property
    def size(self) -> Any:
        """The number of elements."""
        return from_size(sizes.product(self._entry.shape))

    @property
    def dtype(self) -> np.dtype:
        """The dtype."""
        return self._entry.dtype

    @property
    def device(self) -> str:
        """Where the value lies."""
        return "cpu"

    @property
    def name(self) -> str | None:
        """The name that graphs and formulas print."""
        return self._entry.name

    @name.setter
    def name(self, name: str | None) -> None:
        self._entry.name = name

    @property
    def requires_grad(self) -> bool:
        """Whether a gradient reaches this Tensor; set it on Tensors that were given, not computed."""
        return self._leaf or self._entry.requires_grad

    @requires_grad.setter
    def requires_grad(self, wanted: bool) -> None:
        if wanted and self.dtype.kind != "f":
            raise GradientError(f"requires_grad: only floating dtypes have gradients, not {self.dtype}")
        if not wanted and not self._leaf and self._entry.requires_grad:
            raise GradientError("requires_grad = False on a computed Tensor; use .detach()")
        self._leaf = bool(wanted)
        if wanted:
            self._entry.requires_grad = True
            self._entry.owner = weakref.ref(self)
        elif self._entry.primitive == "leaf":
            self._entry.requires_grad = False

    def requires_grad_(self, wanted: bool = True) -> Tensor:
        """Set ``requires_grad`` and return this Tensor."""
        self.requires_grad = wanted
        return self

    def retain_grad(self) -> None:
        """Let ``backward()`` fill ``grad`` of this computed Tensor too."""
        if not self.requires_grad:
            raise GradientError("retain_grad: no gradient reaches this Tensor; set requires_grad on what it is computed from")
        self._entry.owner = weakref.ref(self)

    @property
    def is_leaf(self) -> bool:
        """Whether this Tensor was given rather than computed."""
        return self._leaf or not self._entry.requires_grad

    @property
    def grad(self) -> Tensor | None:
        """The accumulated gradient, or None.

        Raises
        ------
        GradientError
            After a jitted step that used the gradient in its update and did not keep it.
        """
        grad = self._grad
        trace = tape.local.trace
        if trace is not None and id(self) not in trace.gradients:
            trace.expected.setdefault(id(self), (self, grad is not None))
        if grad is None:
            return None
        if isinstance(grad, _Consumed):
            raise GradientError(
                "grad: a jitted step computed and consumed this gradient without keeping it; "
                "return it from the step, or decorate the step with @jit(keep_grads=True)"
            )
        if trace is not None and grad._entry.trace is not trace and grad._entry not in trace.captured:
            inner = _wrap(tape.leaf(grad._outer_value()))
            trace.captured[inner._entry] = GradientSlot(self)
            trace.gradients.setdefault(id(self), (self, grad))
            self._grad = inner
            return inner
        return grad

    @grad.setter
    def grad(self, grad: Any) -> None:
        trace = tape.local.trace
        if trace is not None:
            trace.gradients.setdefault(id(self), (self, self._grad))
        if grad is None or (isinstance(grad, int | float) and grad == 0):
            if trace is not None:
                trace.cleared.add(id(self))
            self._grad = None if grad is None else record_full(self._entry.shape, 0, self.dtype)
            return
        new = as_tensor(grad, self.dtype)
        if len(new._entry.shape) != self.ndim or any(
            sizes.unify(a, b) is None for a, b in zip(new._entry.shape, self._entry.shape)
        ):
            raise ShapeError(f"grad: shape {shape_text(new._entry.shape)} is not that of the Tensor, {shape_text(self._entry.shape)}")
        self._grad = new

    @property
    def data(self) -> Tensor:
        """The value without history; assigning to it changes the value and records nothing for gradients."""
        return self.detach()

    @data.setter
    def data(self, value: Any) -> None:
        with tape.grad_mode(False):
            new = as_tensor(value, self.dtype)
            if new.dtype != self.dtype:
                new = new.astype(self.dtype)
            self._replace(new, "data")

    def detach(self) -> Tensor:
        """The same value, without history."""
        entry = self._entry
        if entry.value is not None and not self.requires_grad and self._storage is None and entry.trace is None:
            return _wrap(entry)
        return record("stop_gradient", (self,))

    def _replace(self, new: Tensor, operation: str) -> None:
        """Take the value of ``new``, which must fit, as the next version of this Tensor."""
        if len(new._entry.shape) != self.ndim or any(
            sizes.unify(a, b) is None for a, b in zip(new._entry.shape, self._entry.shape)
        ):
            raise InPlaceError(
                f"{operation}: a Tensor of shape {shape_text(self._entry.shape)} cannot take a value of shape "
                f"{shape_text(new._entry.shape)}; in-place changes keep the shape"
            )
        if new.dtype != self.dtype:
            raise InPlaceError(
                f"{operation}: a Tensor of dtype {self.dtype} cannot take a value of dtype {new.dtype}; cast with .astype"
            )
        if self._leaf and tape.is_grad_enabled() and operation != "data":
            raise InPlaceError(
                f"{operation}: this Tensor requires a gradient and was not computed; change it inside tg.no_grad() "
                "or through .data"
            )
        entry = new._entry
        if self._leaf and self._storage is None and tape.local.trace is None:
            # A failed run gives a cell its old version back.
            self._make_cell()
        if self._leaf or self._storage is not None:
            entry = record("stop_gradient", (new,))._entry
            entry.requires_grad = self._leaf
        self._rebind(entry)

    # Reading ----------------------------------------------------------------------------------------------------

    def numpy(self) -> np.ndarray:
        """The value as a read-only array; of a parameter a copy, which no later step changes."""
        value = self._value()
        if self._storage is not None:
            value = value.copy()
        view = value.view()
        view.flags.writeable = False
        return view

    def item(self) -> Any:
        """The only element as a Python number.

        Raises
        ------
        ShapeError
            Where there is not exactly one element.
        """
        value = self._value()
        if value.size != 1:
            raise ShapeError(f"item: a Tensor of shape {shape_text(value.shape)} has {value.size} elements, not one")
        return value.item()

    def tolist(self) -> Any:
        """The value as nested lists of Python numbers."""
        return self._value().tolist()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        value = self.numpy()
        if dtype is not None and value.dtype != dtype:
            return value.astype(dtype)
        return value.copy() if copy else value

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        if self.dtype.kind not in "iu" or self.ndim:
            raise DTypeError(f"only integer Tensors of one element are an index, not {self.dtype} of shape {shape_text(self._entry.shape)}")
        return int(self.item())

    def __bool__(self) -> bool:
        return bool(self.item())

    def __len__(self) -> int:
        if not self.ndim:
            raise AxisError("len() of a 0-d Tensor")
        return operator.index(self.shape[0])

    def __iter__(self) -> Iterator[Tensor]:
        return (self[index] for index in range(len(self)))

    def __contains__(self, value: Any) -> bool:
        return bool((self._value() == value).any())

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        entry = self._entry
        operation = entry.primitive
        made = f", operation={operation}" if self._entry.requires_grad and operation not in ("leaf", "freed") else ""
        suffix = f", dtype={self.dtype}" + made
        if self._leaf:
            suffix += ", requires_grad=True"
        if entry.name:
            suffix += f", name={entry.name!r}"
        if tape.local.trace is not None:
            return f"Tensor(shape={shape_text(entry.shape)}{suffix})"
        text = np.array2string(self._value(), separator=", ", prefix="Tensor(")
        return f"Tensor({text}{suffix})"

    def __format__(self, specification: str) -> str:
        return format(self.item(), specification) if specification else str(self)

    def __copy__(self) -> Tensor:
        return self.__deepcopy__({})

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        new = cast(Tensor, object.__new__(type(self)))
        memo[id(self)] = new
        new._start(tape.leaf(self._value().copy()))
        new._entry.name = self._entry.name
        new._weak = self._weak
        if self._leaf:
            new.requires_grad = True
        if isinstance(self._grad, Tensor):
            new._grad = self._grad.__deepcopy__(memo)
        if self._storage is not None:
            new._make_cell()
        return new

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle, (type(self), self._value(), self._leaf, self._entry.name, self._storage is not None)

    # Derivatives ------------------------------------------------------------------------------------------------

    def backward(self, gradient: Any = None, retain_graph: bool = False) -> None:
        """Add the gradient of this Tensor to ``grad`` of everything it depends on that requires one.

        Parameters
        ----------
        gradient : array_like, optional
            The cotangent of this Tensor; needed where it has more than one element.
        retain_graph : bool
            Keep the history, so that ``backward()`` can be called once more.

        Raises
        ------
        GradientError
            Where no gradient reaches this Tensor, it has several elements and no cotangent, or its history is used up.
        """
        entry = self._entry
        if entry.primitive == "freed":
            raise GradientError("backward: a backward pass has used this history up; call the first with retain_graph=True")
        if not self.requires_grad:
            raise GradientError(
                "backward: no gradient reaches this Tensor; set requires_grad=True on what it is computed from"
            )
        if gradient is None:
            if sizes.unify(sizes.product(entry.shape), 1) is None:
                raise GradientError(
                    f"backward: a Tensor of shape {shape_text(entry.shape)} has more than one element; "
                    "reduce it to a scalar (.sum(), .mean()) or give its cotangent: backward(gradient)"
                )
            cotangent = record_full(entry.shape, 1, self.dtype)
        else:
            cotangent = as_tensor(gradient, self.dtype)
            if cotangent.dtype != self.dtype:
                cotangent = cotangent.astype(self.dtype)
            cotangent = record("broadcast_to", (cotangent,), shape=entry.shape)
        owners: dict[int, tuple[Entry, Tensor]] = {}
        for node in tape.history([entry]):
            owner = node.owner() if node.owner is not None else None
            if owner is not None and owner._entry is node:
                owners[id(owner)] = (node, owner)
        # Tensors in the order they came into being, as the walk goes backwards.
        found = list(reversed(owners.values()))
        with tape.grad_mode(False):
            parts = tape.gradient(entry, cotangent._entry, [node for node, _ in found], retain=retain_graph)
            for part, (_, owner) in zip(parts, found):
                new = _wrap(part)
                old = owner.grad
                owner._set_gradient(new if old is None else old + new)

    def _set_gradient(self, grad: Tensor) -> None:
        trace = tape.local.trace
        if trace is not None:
            trace.gradients.setdefault(id(self), (self, self._grad))
        self._grad = grad

    # NumPy's protocols ---------------------------------------------------------------------------------------

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        function = UFUNCS.get(ufunc.__name__)
        if function is None or method != "__call__" or kwargs:
            extra = f" with {', '.join(kwargs)}" if kwargs else ""
            raise TypeError(
                f"np.{ufunc.__name__}{'' if method == '__call__' else '.' + method}{extra} does not work on a Tensor; "
                "use the function of tapegrad, or .numpy() for the value"
            )
        return function(*inputs)

    # Operators ----------------------------------------------------------------------------------------------

    def __neg__(self) -> Tensor:
        return record("negative", (self,))

    def __pos__(self) -> Tensor:
        return self

    def __abs__(self) -> Tensor:
        return record("absolute", (self,))

    def __invert__(self) -> Tensor:
        return record("logical_not", (self,))

    def __matmul__(self, other: Any) -> Tensor:
        return matmul(self, other)

    def __rmatmul__(self, other: Any) -> Tensor:
        return matmul(other, self)

    # Indexing -------------------------------------------------------------------------------------------------

    if TYPE_CHECKING:  # `tapegrad.indexing` puts these here

        def __getitem__(self, index: Any) -> Tensor: ...

        def __setitem__(self, index: Any, value: Any) -> None: ...


def _unpickle(kind: type[Tensor], value: np.ndarray, leaf: bool, name: str | None, cell: bool) -> Tensor:
    tensor = cast(Tensor, object.__new__(kind))
    tensor._start(tape.leaf(value))
    tensor._entry.name = name
    if leaf:
        tensor.requires_grad = True
    if cell:
        tensor._make_cell()
    return tensor


def _wrap(entry: Entry) -> Tensor:
    """A Tensor on an entry."""
    tensor = cast(Tensor, object.__new__(Tensor))
    tensor._start(entry)
    return tensor


# What a trace captures ---------------------------------------------------------------------------------------


class CapturedTensor:
    """A Tensor from outside the function; its value is read at each call."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def read(self) -> np.ndarray:
        """The value now."""
        return self.tensor._value()


class CapturedArray:
    """A NumPy array from outside the function; read at each call."""

    __slots__ = ("array", "name")

    def __init__(self, array: np.ndarray, name: str | None = None) -> None:
        self.array = array
        self.name = name

    def read(self) -> np.ndarray:
        """The value now."""
        return np.ascontiguousarray(self.array)


class GradientSlot:
    """The ``grad`` that a Tensor has when the call begins."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def read(self) -> np.ndarray:
        """The value now."""
        grad = self.tensor.grad
        assert grad is not None
        return grad._value()


# Recording ----------------------------------------------------------------------------------------------------


def record(primitive: str, inputs: tuple[Tensor, ...], **params: Any) -> Tensor:
    """Record a primitive on Tensors of the dtypes it wants and return its result."""
    trace = tape.local.trace
    requires_grad = False
    entries = []
    for tensor in inputs:
        entry = tensor._entry
        if tensor._leaf or entry.requires_grad:
            requires_grad = True
        if trace is not None and entry.trace is not trace:
            entry = _capture(tensor, trace)
        entries.append(entry)
    if primitive == "stop_gradient":
        requires_grad = False
    return _wrap(tape.record(primitive, tuple(entries), params, requires_grad))


def _capture(tensor: Tensor, trace: tape.Trace) -> Entry:
    """The entry under which a trace knows a Tensor from outside."""
    entry = tensor._entry
    if entry in trace.captured:
        return entry
    tensor._outer_value()
    trace.captured[tensor._entry] = CapturedTensor(tensor)
    return tensor._entry


def record_number(value: Number, dtype: np.dtype, constant: bool = False) -> Tensor:
    """A Python number as a 0-d Tensor.

    Under ``@jit`` it is a constant of the trace. Outside it is a runtime scalar, so that a number that changes
    from step to step makes no new program - unless ``constant`` says that its value shapes the program.
    """
    if constant or tape.local.trace is not None:
        return record("constant", (), value=dtype.type(value).item(), dtype=dtype)
    return _wrap(tape.leaf(np.array(value, dtype)))


def record_full(shape: Shape, value: Number, dtype: np.dtype) -> Tensor:
    """A Tensor filled with one number that the program may know."""
    number = record("constant", (), value=dtype.type(value).item(), dtype=dtype)
    return record("broadcast_to", (number,), shape=shape) if shape else number


def as_tensor(value: TensorLike, dtype: np.dtype | None = None) -> Tensor:
    """``value`` as a Tensor; numbers and lists of numbers take ``dtype`` where one is given."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Dim):
        tensor = record("size", (), value=value.expression, dtype=dtype if dtype is not None else INT64)
        tensor._weak = dtype is None
        return tensor
    if isinstance(value, bool | int | float) and not isinstance(value, np.generic):
        if dtype is None:
            dtype = BOOL if isinstance(value, bool) else INT64 if isinstance(value, int) else config.default_dtype()
        return record_number(value, dtype)
    if isinstance(value, np.ndarray | np.generic):
        return Tensor(value)
    return Tensor(value, dtype=dtype)


def weak_kind(value: Any) -> str | None:
    """``b``, ``i`` or ``f`` for what never widens: Python numbers, sizes, and scalars that stand for them."""
    if isinstance(value, bool):
        return "b"
    if isinstance(value, Dim) or (isinstance(value, int) and not isinstance(value, np.generic)):
        return "i"
    if isinstance(value, float) and not isinstance(value, np.generic):
        return "f"
    if isinstance(value, Tensor) and value._weak:
        return "f" if value.dtype.kind == "f" else "i"
    return None


def result_dtype(*values: Any) -> np.dtype:
    """The dtype in which values meet.

    Two floating dtypes promote as in NumPy; an integer or bool with a floating one gives the floating one; integers
    promote as in NumPy; Python numbers never widen, they only turn integers into the default floating dtype.
    """
    strong = [value.dtype for value in values if weak_kind(value) is None]
    kinds = [kind for kind in map(weak_kind, values) if kind]
    floats = [dtype for dtype in strong if dtype.kind == "f"]
    if floats:
        return np.result_type(*floats)
    if "f" in kinds:
        return config.default_dtype()
    if strong:
        joined = np.result_type(*strong)
        return INT64 if joined == BOOL and "i" in kinds else as_dtype(joined)
    return INT64 if "i" in kinds else BOOL


def promote(*values: TensorLike, dtype: np.dtype | None = None) -> tuple[Tensor, ...]:
    """The operands of an elementwise operation as Tensors of one dtype."""
    operands = [
        value if isinstance(value, Tensor | Dim | bool | int | float) and not isinstance(value, np.generic) else as_tensor(value)
        for value in values
    ]
    if dtype is None:
        dtype = result_dtype(*operands)
    return tuple(_as(value, dtype) for value in operands)


def _as(value: Any, dtype: np.dtype) -> Tensor:
    if isinstance(value, Tensor):
        return value if value._entry.dtype == dtype and not value._weak else record("cast", (value,), dtype=dtype)
    return as_tensor(value, dtype)


def to_floating(*values: TensorLike) -> tuple[Tensor, ...]:
    """The operands of a function of real numbers: of one floating dtype, integers in the default one."""
    operands = promote(*values)
    if operands[0].dtype.kind == "f":
        return operands
    return promote(*operands, dtype=config.default_dtype())


def weak_scalar(value: float) -> Tensor:
    """A 0-d float64 Tensor that takes the dtype of what it meets, like a Python float; for hyperparameters."""
    tensor = Tensor(np.float64(value))
    tensor._weak = True
    return tensor


def matmul(a: TensorLike, b: TensorLike) -> Tensor:
    """The matrix product by NumPy's rule: 1-d operands are vectors, leading axes are batches that broadcast.

    Parameters
    ----------
    a, b : array_like
        Shapes ``(..., m, k)`` and ``(..., k, n)``, or vectors ``(k,)``.

    Returns
    -------
    Tensor
        Shape ``(..., m, n)``, without the axes that a vector does not have.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.matmul(tg.Tensor([[1.0, 2.0]]), tg.Tensor([3.0, 4.0])).tolist()
    [11.0]
    """
    first, second = promote(a, b)
    if not first.ndim or not second.ndim:
        raise ShapeError(
            f"matmul: {shape_text(first._entry.shape)} @ {shape_text(second._entry.shape)}: operands need at least one axis; "
            "multiply by a scalar with *"
        )
    left, right = first._entry.shape, second._entry.shape
    if len(left) == 1:
        first = record("reshape", (first,), shape=(1, *left))
    if len(right) == 1:
        second = record("reshape", (second,), shape=(*right, 1))
    try:
        product = record("matmul", (first, second), transpose_a=False, transpose_b=False)
    except ShapeError as error:
        reason = error.message.rsplit(": ", 1)[-1]
        raise ShapeError(f"matmul: {shape_text(left)} @ {shape_text(right)}: {reason}") from None
    shape = product._entry.shape
    if len(left) == 1:
        shape = shape[:-2] + shape[-1:]
    if len(right) == 1:
        shape = shape[:-1]
    return product if len(left) > 1 and len(right) > 1 else record("reshape", (product,), shape=shape)


# Operators, from one table ------------------------------------------------------------------------------------


def binary(primitive: str, floating: bool = False) -> Callable[[Any, Any], Tensor]:
    """The function that applies an elementwise primitive to two operands after promotion."""

    def apply(a: TensorLike, b: TensorLike) -> Tensor:
        return record(primitive, to_floating(a, b) if floating else promote(a, b))

    return apply


def power(a: TensorLike, b: TensorLike) -> Tensor:
    """``a ** b``, elementwise; a Python number as exponent is known to the program."""
    if isinstance(b, bool | int | float) and not isinstance(b, np.generic):
        dtype = result_dtype(as_tensor(a) if not isinstance(a, Tensor) else a, b)
        (base,) = promote(a, dtype=dtype)
        if dtype.kind != "f" and b < 0:
            raise DTypeError(f"power: integers have no power {b}; cast with .astype('float32')")
        return record("power", (base, record_number(b, dtype, constant=True)))
    return record("power", promote(a, b))


add, subtract, multiply = binary("add"), binary("subtract"), binary("multiply")
divide = binary("divide", floating=True)
floor_divide, remainder = binary("floor_divide"), binary("remainder")

_ARITHMETIC: dict[str, Callable[[Any, Any], Tensor]] = {
    "add": add,
    "sub": subtract,
    "mul": multiply,
    "truediv": divide,
    "floordiv": floor_divide,
    "mod": remainder,
    "pow": power,
}


def _logical_or_bitwise(primitive: str) -> Callable[[Any, Any], Tensor]:
    return lambda a, b: record(primitive, promote(a, b))


_LOGICAL: dict[str, Callable[[Any, Any], Tensor]] = {
    "and": _logical_or_bitwise("logical_and"),
    "or": _logical_or_bitwise("logical_or"),
    "xor": _logical_or_bitwise("not_equal"),
}
_COMPARISONS: dict[str, Callable[[Any, Any], Tensor]] = {
    "eq": binary("equal"),
    "ne": binary("not_equal"),
    "lt": binary("less"),
    "le": binary("less_equal"),
    "gt": lambda a, b: binary("less")(b, a),
    "ge": lambda a, b: binary("less_equal")(b, a),
}


def _operand(value: Any) -> bool:
    return isinstance(value, Tensor | Dim | bool | int | float | np.ndarray | np.generic | list | tuple)


def _operator(function: Callable[[Any, Any], Tensor], swapped: bool = False) -> Callable[[Tensor, Any], Any]:
    def method(self: Tensor, other: Any) -> Any:
        if not _operand(other):
            return NotImplemented
        return function(other, self) if swapped else function(self, other)

    return method


def _in_place(name: str, function: Callable[[Any, Any], Tensor]) -> Callable[[Tensor, Any], Tensor]:
    def method(self: Tensor, other: Any) -> Tensor:
        self._replace(function(self, other), f"x {name}= y")
        return self

    return method


_SYMBOLS = {"add": "+", "sub": "-", "mul": "*", "truediv": "/", "floordiv": "//", "mod": "%", "pow": "**"}
for _name, _function in {**_ARITHMETIC, **_LOGICAL}.items():
    setattr(Tensor, f"__{_name}__", _operator(_function))
    setattr(Tensor, f"__r{_name}__", _operator(_function, swapped=True))
for _name, _function in {**_ARITHMETIC}.items():
    setattr(Tensor, f"__i{_name}__", _in_place(_SYMBOLS[_name], _function))
for _name, _function in _COMPARISONS.items():
    setattr(Tensor, f"__{_name}__", _operator(_function))

#: NumPy's ufuncs that stay on the tape, by name; `tapegrad.functions` adds its own.
UFUNCS: dict[str, Callable[..., Any]] = {
    "add": add,
    "subtract": subtract,
    "multiply": multiply,
    "divide": divide,
    "true_divide": divide,
    "floor_divide": floor_divide,
    "remainder": remainder,
    "power": power,
    "float_power": power,
    "matmul": matmul,
    "negative": operator.neg,
    "positive": operator.pos,
    "equal": _COMPARISONS["eq"],
    "not_equal": _COMPARISONS["ne"],
    "less": _COMPARISONS["lt"],
    "less_equal": _COMPARISONS["le"],
    "greater": _COMPARISONS["gt"],
    "greater_equal": _COMPARISONS["ge"],
    "logical_and": _LOGICAL["and"],
    "logical_or": _LOGICAL["or"],
    "bitwise_and": _LOGICAL["and"],
    "bitwise_or": _LOGICAL["or"],
}

__all__ = [
    "AxisError",
    "BoundsError",
    "Dim",
    "TapegradError",
    "Tensor",
    "as_dtype",
    "as_shape",
    "as_size",
    "as_tensor",
    "binary",
    "matmul",
    "normalize_axis",
    "power",
    "promote",
    "record",
    "record_full",
    "record_number",
    "result_dtype",
    "to_floating",
    "weak_scalar",
]
