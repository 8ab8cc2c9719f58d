"""Module and Parameter: named, nested state in torch's layout."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any, TypeVar, cast

import numpy as np

from tapegrad import placement, structure, tape
from tapegrad.errors import DTypeError, OptionError, StateError
from tapegrad.ir.dtypes import is_floating, known
from tapegrad.models.storage import flatten_storage
from tapegrad.primitives import shape_text
from tapegrad.recording import as_dtype, as_tensor
from tapegrad.tensor import Tensor

Self = TypeVar("Self", bound="Module")


class Parameter(Tensor):
    """A Tensor that a `Module` registers under the name of the attribute it is assigned to, and an optimizer updates.

    Its value lies in a buffer of its own, which updates overwrite in place.

    Parameters
    ----------
    data : array_like
        Copied.
    dtype : dtype, optional
        float32 or float64.
    requires_grad : bool
        False makes a frozen parameter.
    name : str, optional
        The name that graphs print; a module gives one where there is none.

    Examples
    --------
    >>> from tapegrad.models import Parameter
    >>> Parameter([1.0, 2.0]).requires_grad
    True
    """

    __slots__ = ()

    def __init__(self, data: Any, dtype: Any = None, requires_grad: bool = True, name: str | None = None) -> None:
        super().__init__(data, dtype=dtype, requires_grad=requires_grad, name=name)
        self._make_cell()


class Module:
    """Something with parameters, buffers, modules inside it, and a ``forward``.

    A Parameter, Module or (through `register_buffer`) Tensor that is assigned to an attribute is registered under its
    name. Names and layout of `state_dict` are torch's. A call casts floating arguments to the dtype of the parameters
    and runs ``forward``.

    Attributes
    ----------
    training : bool
        True until `eval` is called.

    Examples
    --------
    >>> import numpy as np
    >>> import tapegrad as tg
    >>> from tapegrad.models import Module, Parameter
    >>> class Scale(Module):
    ...     def __init__(self):
    ...         self.factor = Parameter([2.0, 3.0])
    ...     def forward(self, x):
    ...         return x * self.factor
    >>> scale = Scale()
    >>> scale(np.array([1.0, 1.0])).tolist(), [name for name, _ in scale.named_parameters()]
    ([2.0, 3.0], ['factor'])
    """

    training: bool
    _parameters: dict[str, Parameter | None]
    _buffers: dict[str, Tensor | None]
    _modules: dict[str, Module | None]
    _transient: set[str]

    def __new__(cls: type[Self], *args: Any, **kwargs: Any) -> Self:
        # Here and not in __init__, so that a subclass need not call super().__init__() first.
        module = super().__new__(cls)
        module.__dict__.update(_parameters={}, _buffers={}, _modules={}, _transient=set(), training=True)
        return module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What a call computes; each module has its own."""
        raise OptionError(f"{type(self).__name__} has no forward(); define one")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and not kwargs and type(args[0]) is Tensor:
            # The most frequent call: what is of the right dtype goes in as it is.
            entry = args[0]._entry
            if not is_floating(entry.dtype) or self._parameter_dtype() in (None, entry.dtype):
                return self.forward(args[0])
        dtype = self._parameter_dtype()
        return self.forward(
            *[_cast_input(value, dtype) for value in args],
            **{name: _cast_input(value, dtype) for name, value in kwargs.items()},
        )

    def _parameter_dtype(self) -> np.dtype | None:
        """The dtype of the first parameter, looking depth first."""
        for parameter in self._parameters.values():
            if parameter is not None:
                return parameter._entry.dtype
        for module in self._modules.values():
            dtype = module._parameter_dtype() if module is not None else None
            if dtype is not None:
                return dtype
        return None

    # Registration ---------------------------------------------------------------------------------------------

    def __setattr__(self, name: str, value: Any) -> None:
        kinds: tuple[dict[str, Any], ...] = (self._parameters, self._buffers, self._modules)
        if isinstance(value, Parameter):
            self.register_parameter(name, value)
        elif isinstance(value, Module):
            self.register_module(name, value)
        elif name in self._parameters and value is not None:
            raise DTypeError(
                f"{type(self).__name__}.{name} is a parameter and cannot become a {type(value).__name__}; assign a "
                f"Parameter or None, or change its value with .{name}.data = ..."
            )
        elif name in self._buffers and (value is None or isinstance(value, Tensor)):
            self._buffers[name] = value
            structure.bump()
        elif value is None and any(name in kind for kind in kinds):
            next(kind for kind in kinds if name in kind)[name] = None
            structure.bump()
        else:
            for kind in kinds:
                kind.pop(name, None)
            known = self.__dict__.get(name, _MISSING)
            self.__dict__[name] = value
            if known is not value:
                structure.bump()

    def __getattr__(self, name: str) -> Any:
        for kind in ("_parameters", "_buffers", "_modules"):
            registered = self.__dict__.get(kind, {})
            if name in registered:
                return registered[name]
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __delattr__(self, name: str) -> None:
        for registered in (self._parameters, self._buffers, self._modules, self.__dict__):
            if name in registered:
                del cast(dict[str, Any], registered)[name]
                structure.bump()
                return
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._parameters, *self._buffers, *self._modules})

    def _register(self, registered: dict[str, Any], name: str, value: Any) -> None:
        if "." in name or not name:
            raise OptionError(f"{type(self).__name__}: {name!r} cannot be a name; it is empty or contains a dot")
        for other in (self._parameters, self._buffers, self._modules, self.__dict__):
            if other is not registered:
                cast(dict[str, Any], other).pop(name, None)
        registered[name] = value
        structure.bump()

    def register_parameter(self, name: str, parameter: Parameter | None) -> None:
        """Register a parameter, or None for one that is left out."""
        self._register(self._parameters, name, parameter)
        if parameter is not None and parameter.name is None:
            parameter.name = name

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Register state that no optimizer updates; ``persistent=False`` leaves it out of `state_dict`.

        Assign to its ``data`` to change its value in place.
        """
        self._register(self._buffers, name, tensor)
        if persistent:
            self._transient.discard(name)
        else:
            self._transient.add(name)
        if tensor is not None:
            tensor._make_cell()
            if tensor.name is None:
                tensor.name = name

    def register_module(self, name: str, module: Module | None) -> None:
        """Register a module under a name that need not be an attribute's, such as ``"0"``."""
        self._register(self._modules, name, module)
        if module is None:
            return
        for path, tensor in [*module.named_parameters(), *module.named_buffers()]:
            # Graphs print the whole path, unless the user has chosen a name.
            if tensor.name in (None, path):
                tensor.name = f"{name}.{path}"

    add_module = register_module

    # Walking --------------------------------------------------------------------------------------------------

    def children(self) -> Iterator[Module]:
        """The modules directly inside."""
        return (module for _, module in self.named_children())

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The modules directly inside, with their names; each once."""
        seen: set[int] = set()
        for name, module in self._modules.items():
            if module is not None and id(module) not in seen:
                seen.add(id(module))
                yield name, module

    def modules(self) -> Iterator[Module]:
        """This module and all inside it, each once."""
        return (module for _, module in self.named_modules())

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """This module and all inside it, with their paths; each once."""
        return self._walk(prefix, set())

    def _walk(self, prefix: str, seen: set[int] | None) -> Iterator[tuple[str, Module]]:
        if seen is not None:
            if id(self) in seen:
                return
            seen.add(id(self))
        yield prefix, self
        for name, module in self._modules.items():
            if module is not None:
                yield from module._walk(f"{prefix}.{name}" if prefix else name, seen)

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """The parameters; one that is tied, under two names, comes once."""
        return (parameter for _, parameter in self.named_parameters(recurse=recurse))

    def named_parameters(self, prefix: str = "", recurse: bool = True) -> Iterator[tuple[str, Parameter]]:
        """The parameters with their paths, such as ``0.weight``; a tied one comes once, under its first name."""
        return _once(self._members(prefix, recurse, lambda module: module._parameters))

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        """The buffers."""
        return (buffer for _, buffer in self.named_buffers(recurse=recurse))

    def named_buffers(self, prefix: str = "", recurse: bool = True) -> Iterator[tuple[str, Tensor]]:
        """The buffers with their paths."""
        return _once(self._members(prefix, recurse, lambda module: module._buffers))

    def _members(
        self, prefix: str, recurse: bool, members: Callable[[Module], Mapping[str, Tensor | None]]
    ) -> Iterator[tuple[str, Any]]:
        for path, module in self._walk(prefix, None) if recurse else [(prefix, self)]:
            for name, tensor in members(module).items():
                if tensor is not None:
                    yield f"{path}.{name}" if path else name, tensor

    def apply(self: Self, function: Callable[[Module], object]) -> Self:
        """Call ``function`` on every module inside, then on this one; return this module."""
        for module in self.children():
            module.apply(function)
        function(self)
        return self

    # Mode -----------------------------------------------------------------------------------------------------

    def train(self: Self, mode: bool = True) -> Self:
        """Switch to training (or, with False, to evaluation), everything inside too; return this module."""
        for module in self.modules():
            module.training = bool(mode)
        return self

    def eval(self: Self) -> Self:
        """Switch to evaluation: Dropout does nothing, BatchNorm uses its running statistics."""
        return self.train(False)

    def requires_grad_(self: Self, requires_grad: bool = True) -> Self:
        """Freeze (False) or thaw all parameters; return this module."""
        for parameter in self.parameters():
            parameter.requires_grad = requires_grad
        structure.bump()
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear ``grad`` of every parameter."""
        clear_gradients(self.parameters(), set_to_none)

    def to(self: Self, target: Any) -> Self:
        """Move to a device, or cast floating parameters and buffers to a dtype, in place; return this module.

        The state of optimizers follows to a device at their next step. Make optimizers after a cast: their state has
        the dtype that the parameters had.

        Raises
        ------
        DeviceError
            Where there is no such device, and the message says what is missing; or where its memory runs out, and the
            module is as it was.
        """
        if placement.is_device(target):
            device, tensors = placement.available(target), [*self.parameters(), *self.buffers()]
            if any(tensor._entry.device != device for tensor in tensors):
                flatten_storage(tensors, device)
                structure.bump()
            return self
        dtype = as_dtype(target)
        if not is_floating(dtype):
            raise DTypeError(f"{type(self).__name__}.to: parameters are floating, not {dtype}")
        for tensor in [*self.parameters(), *self.buffers()]:
            if is_floating(tensor.dtype) and tensor.dtype != dtype:
                recast(tensor, dtype)
        structure.bump()
        return self

    def astype(self: Self, dtype: Any) -> Self:
        """Cast floating parameters and buffers in place; return this module."""
        return self.to(as_dtype(dtype))

    def cuda(self: Self) -> Self:
        """Move to the GPU in place, as ``.to("cuda")``."""
        return self.to("cuda")

    def cpu(self: Self) -> Self:
        """Move to the CPU in place, as ``.to("cpu")``."""
        return self.to("cpu")

    def half(self: Self) -> Self:
        """Cast floating parameters and buffers to float16 in place; return this module."""
        return self.to("float16")

    def bfloat16(self: Self) -> Self:
        """Cast floating parameters and buffers to bfloat16 in place; return this module."""
        return self.to("bfloat16")

    # State ----------------------------------------------------------------------------------------------------

    def _state(self) -> dict[str, Tensor]:
        """Every Tensor of the state by its name; tied ones under each of their names."""
        state: dict[str, Tensor] = {}
        for path, module in self._walk("", None):
            prefix = f"{path}." if path else ""
            for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
                if tensor is not None and name not in module._transient:
                    state[prefix + name] = tensor
        return state

    def state_dict(self) -> dict[str, np.ndarray]:
        """Parameters and persistent buffers by name, as copies that no later step overwrites."""
        return {name: np.array(tensor._host_value()) for name, tensor in self._state().items()}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Take the values of ``state``; floating values are cast to the dtype of the parameter.

        Parameters
        ----------
        state : mapping of str to array_like
            As from `state_dict`.
        strict : bool
            Whether missing and unknown names are errors.

        Raises
        ------
        StateError
            Where names or shapes do not fit; the module is then as it was.
        """
        own = self._state()
        missing = [name for name in own if name not in state]
        unknown = [name for name in state if name not in own]
        if strict and (missing or unknown):
            both = (("missing", missing), ("unknown", unknown))
            texts = [f"{kind} {', '.join(names)}" for kind, names in both if names]
            raise StateError(f"load_state_dict: the state does not fit {type(self).__name__}: {'; '.join(texts)}")
        assign({name: (tensor, state[name]) for name, tensor in own.items() if name in state}, "load_state_dict")

    # Structure ------------------------------------------------------------------------------------------------

    def structure_fingerprint(self) -> Hashable:
        """What a compiled step takes for granted: modules, parameters, modes and plain attributes."""
        return tuple(
            (
                path,
                id(module),
                module.training,
                tuple((name, id(p), p is not None and p.requires_grad) for name, p in module._parameters.items()),
                tuple((name, id(buffer)) for name, buffer in module._buffers.items()),
                tuple((name, id(child)) for name, child in module._modules.items()),
                tuple((name, freeze(value)) for name, value in module.__dict__.items() if name not in _OWN),
            )
            for path, module in self.named_modules()
        )

    # Looks ----------------------------------------------------------------------------------------------------

    def extra_repr(self) -> str:
        """What the repr of this module says between its parentheses."""
        return ""

    def __repr__(self) -> str:
        children = [
            f"({name}): " + "\n  ".join(repr(module).split("\n"))
            for name, module in self._modules.items()
            if module is not None
        ]
        own = self.extra_repr()
        if not children:
            return f"{type(self).__name__}({own})"
        lines = "\n".join(f"  {line}" for line in ([own] if own else []) + children)
        return f"{type(self).__name__}(\n{lines}\n)"


_MISSING = object()
_OWN = ("_parameters", "_buffers", "_modules", "_transient", "training")


def _cast_input(value: Any, dtype: np.dtype | None) -> Any:
    """Arrays become Tensors, and floating ones take the dtype of the parameters; integers follow by promotion."""
    if isinstance(value, np.ndarray | np.generic):
        value = as_tensor(np.asarray(value))
    if isinstance(value, Tensor) and dtype is not None and is_floating(value.dtype) and value.dtype != dtype:
        return value.astype(dtype)
    return value


def _once(members: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    seen: set[int] = set()
    for name, tensor in members:
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor


def freeze(value: Any) -> Hashable:
    """A hashable that changes when a plain value does; other objects count by identity."""
    if isinstance(value, bool | int | float | str | bytes | type(None)):
        return type(value), value
    if isinstance(value, list | tuple):
        return type(value), tuple(freeze(item) for item in value)
    if isinstance(value, dict):
        return dict, tuple((freeze(key), freeze(item)) for key, item in value.items())
    return id(value)


def clear_gradients(parameters: Iterator[Parameter] | list[Parameter], set_to_none: bool) -> None:
    """Set ``grad`` to None, or, where there is one, to zeros."""
    if set_to_none and tape.local.trace is None:
        for parameter in parameters:
            parameter._grad = None
        return
    for parameter in parameters:
        if set_to_none or parameter._grad is None:
            parameter.grad = None
        else:
            parameter.grad = 0.0


def overwrite(tensor: Tensor, value: np.ndarray) -> None:
    """Give a Tensor a new value at once, in its storage; whoever holds the old value keeps it."""
    storage = tensor._make_cell()
    tensor._release()
    placement.assign(storage, value)
    tensor._expose()


def recast(tensor: Tensor, dtype: np.dtype) -> None:
    """Change the dtype of a Tensor that modules and optimizers hold, keeping its identity."""
    value, grad = placement.moved(tensor._host_value().astype(dtype), tensor.device), tensor._grad
    entry = tape.leaf(value, tensor._entry.device)
    entry.requires_grad = tensor._leaf
    tensor._storage, tensor._cell = None, None
    tensor._rebind(entry)
    tensor._make_cell()
    if isinstance(grad, Tensor):
        tensor._grad = grad.astype(dtype)


def assign(pairs: Mapping[str, tuple[Tensor, Any]], operation: str) -> None:
    """Write a value into each Tensor after all have been checked; on an error nothing is changed."""
    values: list[tuple[Tensor, np.ndarray]] = []
    for name, (tensor, value) in pairs.items():
        array = value.numpy() if isinstance(value, Tensor) else np.asarray(value)
        shape = tensor._entry.shape
        if array.shape != shape:
            raise StateError(
                f"{operation}: {name} has shape {shape_text(array.shape)} in the state and {shape_text(shape)} here"
            )
        if (
            array.dtype.kind not in "fiub"
            and known(array.dtype) is None
            or (is_floating(array.dtype) != is_floating(tensor.dtype))
        ):
            raise StateError(f"{operation}: {name} is {array.dtype} in the state and {tensor.dtype} here")
        values.append((tensor, array.astype(tensor.dtype)))
    for tensor, array in values:
        overwrite(tensor, array)
