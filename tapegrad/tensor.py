"""Tensor: what the user holds. Each method records; reading a value runs the tape."""

from __future__ import annotations

import operator
import sys
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tapegrad import foreign, histories, placement, recording, tape
from tapegrad.captures import GradientSlot
from tapegrad.dims import from_size
from tapegrad.errors import (
    AxisError,
    DeviceError,
    DTypeError,
    GradientError,
    InPlaceError,
    ShapeError,
    TracingError,
)
from tapegrad.interop import Exchange, OnTheType
from tapegrad.ir import sizes
from tapegrad.ir.dtypes import is_floating
from tapegrad.operators import UFUNCS, Operators
from tapegrad.primitives import shape_text
from tapegrad.recording import as_tensor, given, record, record_full, wrap
from tapegrad.runtime import devices
from tapegrad.runtime.devices import CPU
from tapegrad.tape import Entry

if TYPE_CHECKING:
    from tapegrad.methods import TensorMethods
else:

    class TensorMethods:
        """The functions that are methods too; `tapegrad.functions` puts them here."""

        __slots__ = ()


class _Consumed:
    """The ``grad`` of a parameter after a jitted step that used its gradient up."""


CONSUMED = _Consumed()


class Tensor(Operators, TensorMethods, Exchange):
    """An array whose operations are recorded on a tape.

    Parameters
    ----------
    data : array_like
        Numbers, nested lists, a NumPy array (copied) or a Tensor. Python floats take the default dtype, float32.
    dtype : dtype, optional
        float32, float64, int32, int64, uint8 or bool; and float16 and bfloat16, in which numbers are stored while
        operations compute in float32.
    device : str, optional
        ``"cpu"`` or ``"cuda"``; the default device where None (`set_default_device`).
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
        place = placement.available(device) if device is not None else None
        if foreign.is_foreign(data):
            data = recording.shared(data, "Tensor", copy=True)
        if isinstance(data, Tensor):
            source = data.detach() if dtype is None else data.detach().astype(dtype)
            entry = source._entry if place is None else source.to(place)._entry
        else:
            entry = given(data, dtype, place or placement.get_default_device(), name)
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
        self._storage: Any = None
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

    def _make_cell(self, storage: Any = None, device: str | None = None) -> Any:
        """Give this Tensor a buffer of its own that programs update in place.

        ``storage`` may be part of a flat one; where it lies on another device than this Tensor, that is named.
        """
        value = self._value()
        if storage is None:
            if self._storage is not None:
                return self._storage
            storage = placement.empty_like(value)
        placement.assign(storage, value)
        if self._cell is not None and self._cell is not self._entry:
            self._cell = None
        self._storage = storage
        self._expose(device)
        return storage

    def _expose(self, device: str | None = None) -> None:
        """Let the entry's value be the storage itself, under an entry that nobody else holds."""
        entry = tape.leaf(self._storage, device or self._entry.device)
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
        placement.assign(storage, entry.value)
        self._expose()
        # What was recorded before this run has the version in its history, and a gradient of it is this Tensor's.
        self._entry.params = {"version": weakref.ref(entry)}

    def _revert(self, failed: Entry) -> None:
        """Give up a version that could not be computed."""
        if self._entry is failed and self._cell is not None:
            self._rebind(self._cell)

    def _exclusive_storage(self, device: str = CPU) -> Any:
        """The storage with the current value in it, seen by nobody else: a program of a device may overwrite it."""
        if self._entry is not self._cell:
            self._make_cell()
            self._value()
            self._commit()
        self._release()
        storage = self._storage
        if type(storage) is not np.ndarray or device != CPU:
            self._storage = self._entry.value = placement.moved(storage, device)
        return self._storage

    def _release(self) -> None:
        """Before the storage is overwritten: a version that somebody else still holds gets a copy."""
        cell = self._cell
        # 3: this Tensor's _cell, its _entry if the version is current, and the argument of getrefcount.
        if cell is not None and sys.getrefcount(cell) > (4 if self._entry is cell else 3):
            cell.value = placement.copy(self._storage)
            if self._entry is cell:
                self._expose()

    def _value(self) -> Any:
        """The value where it lies, running the tape if it must; not to be changed or shown to the user."""
        value = self._entry.value
        if value is not None and tape.local.state.trace is None:
            return value
        tape.run([self._entry])
        value = self._entry.value
        if value is None:
            raise GradientError(tape.DROPPED)
        return value

    def _host_value(self) -> np.ndarray:
        """The value for NumPy, running the tape if it must; not to be changed or shown to the user."""
        return placement.on_host(self._value())

    def _value_for(self, device: str) -> Any:
        """The value for a program of a GPU, which may lie on the host; what names no device and is large moves once."""
        value, entry = self._value(), self._entry
        if entry.device is None and self._storage is None and value.nbytes > placement.MOVED_BYTES:
            value = entry.value = placement.moved(value, device)
        return value

    def _outer_value(self) -> Any:
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
        """Where the value lies: ``"cpu"`` or ``"cuda:0"``."""
        entry = self._entry
        if entry.device is not None:
            return entry.device
        return placement.get_default_device() if entry.value is None else devices.location(entry.value)

    def to(self, target: Any) -> Tensor:
        """This Tensor on a device, or in a dtype; itself where nothing has to be done. Gradients pass.

        Parameters
        ----------
        target : str or dtype
            ``"cpu"`` or ``"cuda"``, or a dtype.

        Returns
        -------
        Tensor

        Raises
        ------
        DeviceError
            Where there is no such device; the message says what is missing.
        TracingError
            Inside ``@jit``, on another device than that of the function's arguments.

        Examples
        --------
        >>> import tapegrad as tg
        >>> tg.Tensor([1.0, 2.0]).to("cpu").device
        'cpu'
        """
        if not placement.is_device(target):
            return self if self.dtype == target else self.astype(target)
        device, entry = placement.available(target), self._entry
        if entry.device == device:
            return self
        trace = tape.local.trace
        if trace is not None:
            if entry.device is not None:
                raise TracingError(
                    f"to({target!r}): this Tensor lies on {entry.device}, and a function under @jit runs on one device"
                    "; move what it is called with"
                )
            if entry.trace is trace:
                entry.device = device
            return self
        value = placement.moved(self._value(), device)
        new = tape.leaf(placement.copy(value) if value is self._storage else value, device)
        if self.requires_grad and tape.is_grad_enabled():
            new.primitive, new.inputs, new.params, new.requires_grad = "identity", (self._entry,), {"index": 0}, True
        return wrap(new)

    def cuda(self) -> Tensor:
        """This Tensor on the GPU, as ``.to("cuda")``."""
        return self.to("cuda")

    def cpu(self) -> Tensor:
        """This Tensor on the CPU, as ``.to("cpu")``."""
        return self.to("cpu")

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
        if wanted and not is_floating(self.dtype):
            raise GradientError(f"requires_grad: only floating dtypes have gradients, not {self.dtype}")
        if not wanted and not self._leaf and self._entry.requires_grad:
            raise GradientError("requires_grad = False on a computed Tensor; use .detach()")
        self._leaf = bool(wanted)
        if wanted:
            self._entry.owner = weakref.ref(self)
            tape.set_requires_grad(self._entry, True)
        elif self._entry.primitive == "leaf":
            tape.set_requires_grad(self._entry, False)

    def requires_grad_(self, wanted: bool = True) -> Tensor:
        """Set ``requires_grad`` and return this Tensor."""
        self.requires_grad = wanted
        return self

    def retain_grad(self) -> None:
        """Let ``backward()`` fill ``grad`` of this computed Tensor too."""
        if not self.requires_grad:
            raise GradientError(
                "retain_grad: no gradient reaches this Tensor; set requires_grad on what it is computed from"
            )
        self._entry.owner = weakref.ref(self)
        tape.changed(self._entry)

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
            inner = wrap(tape.leaf(grad._outer_value(), grad._entry.device))
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
        new = Tensor(grad) if foreign.is_foreign(grad) else as_tensor(grad, self.dtype)
        placement.joined("grad", (self._entry, new._entry))
        if len(new._entry.shape) != self.ndim or any(
            sizes.unify(a, b) is None for a, b in zip(new._entry.shape, self._entry.shape, strict=False)
        ):
            raise ShapeError(
                f"grad: shape {shape_text(new._entry.shape)} is not that of the Tensor, {shape_text(self._entry.shape)}"
            )
        self._grad = new

    @property
    def data(self) -> Tensor:
        """The value without history; assigning to it changes the value and records nothing for gradients."""
        return self.detach()

    @data.setter
    def data(self, value: Any) -> None:
        with tape.grad_mode(False):
            new = Tensor(value) if foreign.is_foreign(value) else as_tensor(value, self.dtype)
            if new.dtype != self.dtype:
                new = new.astype(self.dtype)
            self._replace(new, "data")

    def detach(self) -> Tensor:
        """The same value, without history."""
        entry = self._entry
        if entry.value is not None and not self.requires_grad and self._storage is None and entry.trace is None:
            return wrap(entry)
        return record("stop_gradient", (self,))

    def _replace(self, new: Tensor, operation: str) -> None:
        """Take the value of ``new``, which must fit, as the next version of this Tensor."""
        if len(new._entry.shape) != self.ndim or any(
            sizes.unify(a, b) is None for a, b in zip(new._entry.shape, self._entry.shape, strict=False)
        ):
            raise InPlaceError(
                f"{operation}: a Tensor of shape {shape_text(self._entry.shape)} cannot take a value of shape "
                f"{shape_text(new._entry.shape)}; in-place changes keep the shape"
            )
        if new.dtype != self.dtype:
            raise InPlaceError(
                f"{operation}: a Tensor of dtype {self.dtype} cannot take a value of dtype {new.dtype}; "
                "cast with .astype"
            )
        if self._leaf and tape.is_grad_enabled() and operation != "data":
            raise InPlaceError(
                f"{operation}: this Tensor requires a gradient and was not computed; change it inside tg.no_grad() "
                "or through .data"
            )
        entry, device = new._entry, self._entry.device
        if device is not None and entry.device is not None and entry.device != device:
            raise DeviceError(
                f"{operation}: a Tensor on {device} cannot take a value on {entry.device}; move it with .to({device!r})"
            )
        if self._leaf and self._storage is None and tape.local.trace is None:
            # A failed run gives a cell its old version back.
            self._make_cell()
        if self._leaf or self._storage is not None:
            entry = record("stop_gradient", (new,))._entry
            if self._leaf:
                tape.set_requires_grad(entry, True)
        if entry.device is None and device is not None:
            if entry.value is not None and device != CPU:
                entry = tape.leaf(placement.moved(entry.value, device))
            tape.set_device(entry, device)
        self._rebind(entry)

    # Reading ----------------------------------------------------------------------------------------------------

    def numpy(self) -> np.ndarray:
        """The value as a read-only array; of a parameter a copy, which no later step changes."""
        value = self._host_value()
        if value is self._storage:
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
        value = self._host_value()
        if value.size != 1:
            raise ShapeError(f"item: a Tensor of shape {shape_text(value.shape)} has {value.size} elements, not one")
        return value.item()

    def tolist(self) -> Any:
        """The value as nested lists of Python numbers."""
        return self._host_value().tolist()

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
            raise DTypeError(
                "only an integer Tensor of one element is an index, "
                f"not {self.dtype} of shape {shape_text(self._entry.shape)}"
            )
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
        return bool((self._host_value() == value).any())

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        entry = self._entry
        operation = entry.params["name"] if entry.primitive == "composite" else entry.primitive
        made = f", operation={operation}" if self._entry.requires_grad and operation not in ("leaf", "freed") else ""
        suffix = f", dtype={self.dtype}" + made
        if entry.device not in (None, CPU):
            suffix += f", device={entry.device!r}"
        if self._leaf:
            suffix += ", requires_grad=True"
        if entry.name:
            suffix += f", name={entry.name!r}"
        if tape.local.trace is not None or (entry.trace is not None and entry.value is None):
            return f"Tensor(shape={shape_text(entry.shape)}{suffix})"
        text = np.array2string(self._host_value(), separator=", ", prefix="Tensor(")
        return f"Tensor({text}{suffix})"

    def __format__(self, specification: str) -> str:
        return format(self.item(), specification) if specification else str(self)

    def __copy__(self) -> Tensor:
        return self.__deepcopy__({})

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        new = object.__new__(type(self))
        memo[id(self)] = new
        new._start(tape.leaf(placement.copy(self._value()), self._entry.device))
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
        entry = self._entry
        return _unpickle, (
            type(self), self._host_value(), self._leaf, entry.name, self._storage is not None, entry.device
        )  # fmt: skip

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
            raise GradientError(
                "backward: a backward pass has used this history up; call the first with retain_graph=True"
            )
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
            cotangent = None
        else:
            given = as_tensor(gradient, self.dtype)
            if given.dtype != self.dtype:
                given = given.astype(self.dtype)
            cotangent = record("broadcast_to", (given,), shape=entry.shape)._entry
        histories.adopt(entry)
        found = histories.owned(entry)
        with tape.grad_mode(False):
            parts = histories.gradient(entry, cotangent, [node for node, _ in found], retain=retain_graph)
            tracing = tape.local.state.trace is not None
            for part, (_, owner) in zip(parts, found, strict=True):
                new = wrap(part)
                if not tracing and owner._grad is None:
                    owner._grad = new
                    continue
                old = owner.grad
                owner._set_gradient(new if old is None else old + new)

    def _set_gradient(self, grad: Tensor) -> None:
        trace = tape.local.trace
        if trace is not None:
            trace.gradients.setdefault(id(self), (self, self._grad))
        self._grad = grad

    # NumPy's protocols ---------------------------------------------------------------------------------------

    @OnTheType
    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        function = UFUNCS.get(ufunc.__name__)
        if function is None or method != "__call__" or kwargs:
            extra = f" with {', '.join(kwargs)}" if kwargs else ""
            raise TypeError(
                f"np.{ufunc.__name__}{'' if method == '__call__' else '.' + method}{extra} does not work on a Tensor; "
                "use the function of tapegrad, or .numpy() for the value"
            )
        return function(*inputs)

    # Indexing -------------------------------------------------------------------------------------------------

    if TYPE_CHECKING:  # `tapegrad.indexing` puts these here

        def __getitem__(self, index: Any) -> Tensor: ...

        def __setitem__(self, index: Any, value: Any) -> None: ...


def _unpickle(
    kind: type[Tensor], value: np.ndarray, leaf: bool, name: str | None, cell: bool, device: str | None = None
) -> Tensor:
    tensor = object.__new__(kind)
    tensor._start(tape.leaf(value if device is None else placement.moved(value, placement.available(device)), device))
    tensor._entry.name = name
    if leaf:
        tensor.requires_grad = True
    if cell:
        tensor._make_cell()
    return tensor


recording.Tensor = Tensor  # type: ignore[attr-defined]
