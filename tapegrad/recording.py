"""Recording on Tensors: making them from data, meeting dtypes, and putting primitives on the tape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Union

import numpy as np

from tapegrad import config, dims, foreign, placement, tape
from tapegrad.captures import CapturedArray, CapturedTensor
from tapegrad.dims import Dim
from tapegrad.errors import DTypeError, ShapeError
from tapegrad.ir import dtypes
from tapegrad.ir.dtypes import FLOATING_KINDS, is_floating
from tapegrad.ir.sizes import Shape
from tapegrad.primitives import BOOL, FLOAT16, FLOAT32, FLOAT64, INT32, INT64, UINT8
from tapegrad.runtime.devices import CPU, CUDA
from tapegrad.tape import Entry

if TYPE_CHECKING:
    from tapegrad.tensor import Tensor
else:
    Tensor: Any = None  # `tapegrad.tensor`, which stands on this module, puts its class here

_NATIVE = frozenset((FLOAT32, FLOAT64, INT32, INT64, UINT8, BOOL, FLOAT16))
Number = bool | int | float
#: What an operation takes where it wants an array.
TensorLike = Union["Tensor", Dim, np.ndarray, Number, Sequence[Any]]


def private_array(data: Any, dtype: Any) -> np.ndarray:
    """A private, C-contiguous, native array of ``data`` in one of our dtypes."""
    if type(data) is np.ndarray and dtype is None and data.dtype in _NATIVE:
        return data.copy()
    if isinstance(data, np.ndarray | np.generic):
        wanted = as_dtype(dtype if dtype is not None else data.dtype, "Tensor: ")
    else:
        try:
            plain = np.asarray(data)
        except ValueError as error:
            raise ShapeError(f"Tensor: the nested sequence is not rectangular ({error})") from None
        if plain.dtype == object:
            raise DTypeError(f"Tensor: cannot make an array of {type(data).__name__}; give numbers or a NumPy array")
        holds_arrays = isinstance(data, list | tuple) and any(
            isinstance(item, np.ndarray | np.generic) for item in data
        )
        inferred = config.default_dtype() if is_floating(plain.dtype) and not holds_arrays else plain.dtype
        if plain.size == 0 and not holds_arrays and plain.dtype == FLOAT64:
            inferred = config.default_dtype()
        data, wanted = plain, as_dtype(dtype if dtype is not None else inferred, "Tensor: ")
    return np.array(data, dtype=wanted, order="C", copy=True)


def given(data: Any, dtype: Any, device: str | None = None, name: str | None = None) -> Entry:
    """An entry that holds a private copy of ``data``; inside a trace, an array is read anew at each call."""
    array = private_array(data, dtype)
    entry = tape.leaf(array if device in (None, CPU) else placement.moved(array, device), device)
    trace = tape.local.state.trace
    if trace is not None and isinstance(data, np.ndarray) and dtype in (None, data.dtype):
        trace.captured.setdefault(entry, CapturedArray(data, name))
    return entry


def shared(value: Any, operation: str, copy: bool = False) -> Tensor:
    """A Tensor on the memory of an array of a GPU, or on a copy; inside a trace, it is read anew at each call."""
    array = foreign.adopted(value, operation)
    entry = tape.leaf(placement.copy(array) if copy else array, CUDA)
    if tape.local.trace is not None:
        tape.local.trace.captured[entry] = foreign.CapturedForeign(value)
    return wrap(entry)


def undecided(value: Any, dtype: Any = None) -> Tensor:
    """A Tensor of ``value`` that goes along with Tensors of any device."""
    return wrap(given(value, dtype))


def as_dtype(dtype: Any, operation: str = "") -> np.dtype:
    """A dtype of ours from whatever NumPy accepts as one, and from ``"bfloat16"``."""
    try:
        wanted = dtypes.known(dtype)
    except DTypeError:
        raise
    except TypeError:
        raise DTypeError(f"{operation}{dtype!r} is not a dtype") from None
    if wanted is None:
        names = ", ".join(map(str, dtypes.DTYPE_CODES))
        raise DTypeError(f"{operation}dtype {np.dtype(dtype)} is not supported; cast to one of {names}")
    return wanted


def wrap(entry: Entry) -> Tensor:
    """A Tensor on an entry."""
    tensor: Tensor = _new(Tensor)
    entry.handles += 1
    tensor._entry = entry
    tensor._grad = tensor._storage = tensor._cell = None
    tensor._leaf = tensor._weak = False
    return tensor


_new = object.__new__


def record(primitive: str, inputs: tuple[Tensor, ...], **params: Any) -> Tensor:
    """Record a primitive on Tensors of the dtypes it wants and return its result."""
    trace = tape.local.state.trace
    if trace is None:
        entries = tuple([tensor._entry for tensor in inputs])
    else:
        entries = tuple([t._entry if t._entry.trace is trace else capture(t, trace) for t in inputs])
    return wrap(tape.record(primitive, entries, params))


def capture(tensor: Tensor, trace: tape.Trace) -> Entry:
    """The entry under which a trace knows a Tensor from outside."""
    if trace.substitutes is not None:
        return trace.stand_in(tensor)
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
    return wrap(tape.leaf(np.array(value, dtype)))


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
        return wrap(given(value, None))
    if foreign.is_foreign(value):
        return shared(value, "an operand")
    return wrap(given(value, dtype))


def weak_kind(value: Any) -> str | None:
    """``b``, ``i`` or ``f`` for what never widens: Python numbers, sizes, and scalars that stand for them."""
    if isinstance(value, bool):
        return "b"
    if isinstance(value, Dim) or (isinstance(value, int) and not isinstance(value, np.generic)):
        return "i"
    if isinstance(value, float) and not isinstance(value, np.generic):
        return "f"
    if isinstance(value, Tensor) and value._weak:
        return "f" if is_floating(value.dtype) else "i"
    return None


def result_dtype(*values: Any) -> np.dtype:
    """The dtype in which values meet.

    Two floating dtypes promote as in NumPy; an integer or bool with a floating one gives the floating one; integers
    promote as in NumPy; Python numbers never widen, they only turn integers into the default floating dtype.
    """
    strong = [value.dtype for value in values if weak_kind(value) is None]
    kinds = [kind for kind in map(weak_kind, values) if kind]
    floats = [dtype for dtype in strong if is_floating(dtype)]
    if floats:
        return dtypes.join_floating(floats)
    if "f" in kinds:
        return config.default_dtype()
    if strong:
        joined = np.result_type(*strong)
        return INT64 if joined == BOOL and "i" in kinds else as_dtype(joined)
    return INT64 if "i" in kinds else BOOL


def promote(*values: TensorLike, dtype: np.dtype | None = None) -> tuple[Tensor, ...]:
    """The operands of an elementwise operation as Tensors of one dtype."""
    if dtype is None and alike(values):
        return values  # type: ignore[return-value]
    operands = [
        value
        if isinstance(value, Tensor | Dim | bool | int | float) and not isinstance(value, np.generic)
        else as_tensor(value)
        for value in values
    ]
    if dtype is None:
        dtype = result_dtype(*operands)
    return tuple(_as(value, dtype) for value in operands)


def alike(values: Sequence[Any]) -> bool:
    """Whether all values are Tensors of one dtype, none of them weak."""
    dtype = None
    for value in values:
        if not isinstance(value, Tensor) or value._weak:
            return False
        own = value._entry.dtype
        if own is not dtype:
            if dtype is not None and own != dtype:
                return False
            dtype = own
    return dtype is not None


def _as(value: Any, dtype: np.dtype) -> Tensor:
    if isinstance(value, Tensor):
        return value if value._entry.dtype == dtype and not value._weak else record("cast", (value,), dtype=dtype)
    return as_tensor(value, dtype)


def to_floating(*values: TensorLike) -> tuple[Tensor, ...]:
    """The operands of a function of real numbers: of one floating dtype, integers in the default one."""
    if len(values) == 1:
        only = values[0]
        if isinstance(only, Tensor) and not only._weak and only._entry.dtype.kind in FLOATING_KINDS:
            return (only,)
    operands = promote(*values)
    if is_floating(operands[0].dtype):
        return operands
    return promote(*operands, dtype=config.default_dtype())


def weak_scalar(value: float) -> Tensor:
    """A 0-d float64 Tensor that takes the dtype of what it meets, like a Python float; for hyperparameters."""
    tensor = undecided(np.float64(value))
    tensor._weak = True
    return tensor


dims.as_scalar = as_tensor
