"""What every optimizer shares: parameters in flat storage, state, hyperparameters that are runtime scalars."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from tapegrad import placement, structure, tape
from tapegrad.errors import OptionError, StateError, TracingError
from tapegrad.ir.dtypes import computed, is_floating
from tapegrad.models.module import Parameter, assign, clear_gradients
from tapegrad.models.storage import flatten_storage
from tapegrad.primitives import INT64
from tapegrad.recording import record, undecided, weak_scalar
from tapegrad.selection import where
from tapegrad.templates import Update, run_update, write_update
from tapegrad.tensor import Tensor


class Hyperparameter:
    """An attribute of an optimizer that reads as a float and is a runtime scalar in programs."""

    def __init__(self, low: float = 0.0, below: float = float("inf")) -> None:
        self.low, self.below = low, below

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, optimizer: Optimizer | None, owner: type) -> Any:
        if optimizer is None:
            return self
        return optimizer._scalars[self.name].item()

    def __set__(self, optimizer: Optimizer, value: Any) -> None:
        if not isinstance(value, Tensor):
            value = float(value)
            if not self.low <= value < self.below:
                limit = f" and less than {self.below}" if self.below < float("inf") else ""
                raise OptionError(
                    f"{type(optimizer).__name__}: {self.name} must be at least {self.low:g}{limit}, but is {value}"
                )
        optimizer._set_scalar(self.name, value)


class Optimizer:
    """What every optimizer shares: parameters, state, hyperparameters.

    A subclass names its hyperparameters and per-parameter state, and computes a step in `_update`.

    Parameters
    ----------
    params : iterable of Parameter
        Or of Tensors that require gradients. A tied one counts once.

    Raises
    ------
    OptionError
        Where there are none, or a hyperparameter is out of range.
    DeviceError
        Where they lie on several devices.
    """

    lr = Hyperparameter()
    #: Hyperparameters that leave out a term where they are zero.
    _switches: ClassVar[tuple[str, ...]] = ("weight_decay",)

    def __init__(self, params: Iterable[Tensor], **hyperparameters: float) -> None:
        unique = {id(parameter): parameter for parameter in _checked(params, type(self).__name__)}
        if not unique:
            raise OptionError(f"{type(self).__name__}: there are no parameters")
        self.params: list[Parameter] = list(unique.values())
        self._scalars: dict[str, Tensor] = {}
        self._active: dict[str, bool] = {}
        self._state: dict[str, list[Tensor]] = {}
        #: The step counts, and which of them each parameter goes by: parameters that were skipped count apart.
        self._counts: list[Tensor] = []
        self._count_of: list[int] = []
        #: What the parameters of one step share, recorded once.
        self._shared: dict[Hashable, Any] = {}
        #: The step written down, after what it was written for: structure epoch, dtypes of the gradients, structure.
        self._written: tuple[int, Sequence[str | None], Hashable, Update] | None = None
        #: Where the parameters lie, and the state beside them.
        self._device = placement.joined(type(self).__name__, [parameter._entry for parameter in self.params])
        flatten_storage(self.params)
        for name, value in hyperparameters.items():
            setattr(self, name, value)
        self._prepare()

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        if not isinstance(getattr(type(self), name, None), Hyperparameter | property):
            structure.bump()

    def __getstate__(self) -> dict[str, Any]:
        # What is written down belongs to these Tensors; a copy writes its own.
        return {**self.__dict__, "_written": None}

    # Hyperparameters ------------------------------------------------------------------------------------------

    def _set_scalar(self, name: str, value: Any) -> None:
        active = isinstance(value, Tensor) or value != 0
        known = self._scalars.get(name)
        if known is None:
            self._scalars[name] = weak_scalar(value)
            self._scalars[name].name = name
        else:
            known.data = value
        if name in self._switches and self._active.get(name) != active:
            self._active[name] = active
            structure.bump()
            if known is not None:
                self._prepare()

    def _number(self, name: str, dtype: np.dtype) -> Tensor:
        """A hyperparameter in the dtype of a computation."""
        number = self._shared.get((name, dtype))
        if number is None:
            number = self._shared[name, dtype] = record("cast", (self._scalars[name],), dtype=dtype)
        return number

    # State ----------------------------------------------------------------------------------------------------

    def _slots(self) -> tuple[str, ...]:
        """The names of the state that each parameter has, under these hyperparameters."""
        return ()

    def _counting(self) -> bool:
        """Whether steps are counted."""
        return False

    def _prepare(self) -> None:
        """Make the state that is needed and not there, so that a compiled step finds it."""
        for slot in self._slots():
            if slot not in self._state:
                tensors = [Tensor(np.zeros(p.shape, computed(p.dtype)), device=p.device) for p in self.params]
                for parameter, tensor in zip(self.params, tensors, strict=True):
                    tensor.name = f"{parameter.name}.{slot}" if parameter.name else slot
                flatten_storage(tensors)
                self._state[slot] = tensors
        if self._counting() and not self._counts:
            self._counts = [_counter(0)]
            self._count_of = [0] * len(self.params)

    def _follow(self) -> None:
        """Move the state to where the parameters lie."""
        device = placement.joined(type(self).__name__, [parameter._entry for parameter in self.params])
        trace, tape.local.trace = tape.local.trace, None
        try:
            flatten_storage([tensor for tensors in self._state.values() for tensor in tensors], device)
        finally:
            tape.local.trace = trace
        self._device = device
        structure.bump()

    def _split_counts(self, active: list[int]) -> None:
        """Parameters that are skipped from now on keep their count."""
        stepped = set(active)
        for number in range(len(self._counts)):
            members = [index for index, count in enumerate(self._count_of) if count == number]
            left = [index for index in members if index not in stepped]
            if not left or len(left) == len(members):
                continue
            trace = tape.local.trace
            if trace is not None and id(self._counts[number]) in trace.entries:
                raise TracingError(
                    f"{type(self).__name__}.step: two steps in one @jit function update different parameters; "
                    "give each set of parameters an optimizer of its own"
                )
            tape.local.trace = None
            try:
                self._counts.append(_counter(self._counts[number].item()))
            finally:
                tape.local.trace = trace
            for index in left:
                self._count_of[index] = len(self._counts) - 1
            structure.bump()

    # Steps ----------------------------------------------------------------------------------------------------

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear ``grad`` of every parameter: to None, or where there is one to zeros."""
        clear_gradients(self.params, set_to_none)

    def step(self, when: Tensor | None = None) -> None:
        """Update every parameter that has a ``grad``, and run the tape unless inside ``@jit``.

        Parameters
        ----------
        when : Tensor of bool, 0-d, optional
            Where it is false, parameters and state stay as they are; it is looked at by the program alone.

        Raises
        ------
        GradientError
            Where a jitted step has used a gradient up.
        """
        state = tape.local.state
        if self.params[0]._entry.device != self._device:
            self._follow()
        gradients = [
            parameter._grad if state.trace is None and type(parameter._grad) is Tensor else parameter.grad
            for parameter in self.params
        ]
        if self._counts:
            self._split_counts([index for index, gradient in enumerate(gradients) if gradient is not None])
        if state.trace is not None:
            self._record_step(gradients, when)
            state.trace.consumed |= {id(p) for p, g in zip(self.params, gradients, strict=True) if g is not None}
            return
        if not hasattr(self._update, "replayable"):
            self._record_step(gradients, when)
            tape.run()
            return
        present = [gradient for gradient in gradients if gradient is not None]
        kinds: list[str | None] = [None if g is None else g._entry.dtype.char for g in gradients]
        if when is not None:
            present, kinds = [*present, when], [*kinds, "when"]
        run_update(self._written_step(gradients, present, kinds, when), present)

    def _written_step(
        self,
        gradients: Sequence[Tensor | None],
        present: Sequence[Tensor],
        kinds: Sequence[str | None],
        when: Tensor | None,
    ) -> Update:
        """The step for gradients of these dtypes, written down anew where the structure is another."""
        epoch = structure.epoch()
        known = self._written
        if known is not None and known[1] == kinds:
            if known[0] == epoch:
                return known[3]
            if known[2] == self.structure_fingerprint():
                object.__setattr__(self, "_written", (epoch, *known[1:]))
                return known[3]
        update = write_update(lambda: self._record_step(gradients, when), present, f"{type(self).__name__}.step")
        object.__setattr__(self, "_written", (epoch, kinds, self.structure_fingerprint(), update))
        return update

    def _record_step(self, gradients: Sequence[Tensor | None], when: Tensor | None = None) -> None:
        """Record the update of every parameter that has a gradient; halves are updated in float32, and rounded once."""
        self._shared.clear()
        active = [index for index, gradient in enumerate(gradients) if gradient is not None]
        numbers = sorted({self._count_of[index] for index in active} if self._counts else ())
        changing = [self._counts[number] for number in numbers]
        changing += [tensors[index] for tensors in self._state.values() for index in active]
        changing += [self.params[index] for index in active]
        with tape.grad_mode(False):
            before = [tensor.detach() for tensor in changing] if when is not None else []
            for number in numbers:
                self._counts[number].data = self._counts[number] + 1
            for index in active:
                gradient, parameter = gradients[index], self.params[index]
                assert gradient is not None
                wide = computed(parameter.dtype)
                operands = (x if x.dtype == wide else x.astype(wide) for x in (parameter, gradient))
                parameter.data = self._update(index, *operands)
            if when is not None:
                for tensor, old in zip(changing, before, strict=True):
                    tensor.data = where(when, tensor, old)
        self._shared.clear()

    def _update(self, index: int, parameter: Tensor, gradient: Tensor) -> Tensor:
        """The new value of a parameter; assigns its new state."""
        raise OptionError(f"{type(self).__name__} has no _update(); define one")

    # Saving ---------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, np.ndarray]:
        """State and hyperparameters by name (``exp_avg.0``, ``step.0``, ``lr``), as copies."""
        state = {f"{slot}.{i}": np.array(t._host_value()) for slot, ts in self._state.items() for i, t in enumerate(ts)}
        if self._counts:
            counts = [np.array(count._host_value()) for count in self._counts]
            state.update({f"step.{index}": counts[number] for index, number in enumerate(self._count_of)})
        state.update({name: np.array(tensor._host_value()) for name, tensor in self._scalars.items()})
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the state and hyperparameters of an optimizer of the same kind over parameters of the same shapes.

        Raises
        ------
        StateError
            Where names or shapes do not fit; the optimizer is then as it was.
        """
        name = f"{type(self).__name__}.load_state_dict"
        expected = {*self.state_dict()}
        if expected != {*state}:
            different = ", ".join(sorted(expected ^ {*state}))
            raise StateError(f"{name}: the state does not fit: {different} is missing on one side")
        pairs = {
            f"{slot}.{index}": (tensor, state[f"{slot}.{index}"])
            for slot, tensors in self._state.items()
            for index, tensor in enumerate(tensors)
        }
        steps = [int(state[f"step.{index}"]) for index in range(len(self._count_of))]
        scalars = {scalar: float(state[scalar]) for scalar in self._scalars}
        assign(pairs, name)
        if self._counts:
            groups = dict(zip(self._count_of, steps, strict=True))
            if [groups[number] for number in self._count_of] == steps:
                for number, step in groups.items():
                    self._counts[number].data = step
            else:
                distinct = sorted(set(steps))
                self._counts = [_counter(step) for step in distinct]
                self._count_of = [distinct.index(step) for step in steps]
        for scalar, value in scalars.items():
            setattr(self, scalar, value)
        structure.bump()

    def structure_fingerprint(self) -> Hashable:
        """What a compiled step takes for granted: parameters, state, and which terms there are."""
        return (
            type(self),
            tuple((id(parameter), parameter.requires_grad) for parameter in self.params),
            tuple((slot, tuple(map(id, tensors))) for slot, tensors in self._state.items()),
            (tuple(map(id, self._counts)), tuple(self._count_of)),
            tuple((name, id(tensor)) for name, tensor in self._scalars.items()),
            tuple(self._active.items()),
            self._options(),
        )

    def _options(self) -> tuple[Hashable, ...]:
        """Options that choose between formulas."""
        return ()

    def __repr__(self) -> str:
        texts = [f"{name}={tensor.item():g}" for name, tensor in self._scalars.items()]
        return f"{type(self).__name__}({len(self.params)} parameters, {', '.join(texts)})"


def replayable(update: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Mark an `Optimizer._update` that reads nothing but hyperparameters, state and options.

    Outside ``@jit`` a step is then written down once and is one entry on the tape; without the mark, an `_update`
    runs at every step.
    """
    update.replayable = True  # type: ignore[attr-defined]
    return update


def _checked(params: Iterable[Tensor], name: str) -> list[Any]:
    """The parameters, each a Tensor of a floating dtype."""
    if isinstance(params, Tensor):
        raise OptionError(f"{name}: give an iterable of parameters, such as model.parameters() or [p]")
    parameters = list(params)
    for parameter in parameters:
        if isinstance(parameter, dict):
            raise OptionError(f"{name}: parameter groups are not supported; make an optimizer for each group")
        if not isinstance(parameter, Tensor):
            raise OptionError(f"{name}: a {type(parameter).__name__} is not a parameter")
        if not is_floating(parameter.dtype) or not parameter.is_leaf:
            raise OptionError(
                f"{name}: a parameter must be floating and given, not computed; this one is {parameter.dtype}"
                + ("" if parameter.is_leaf else " and computed")
            )
    return parameters


def _counter(value: int) -> Tensor:
    """A step count."""
    counter = undecided(np.asarray(value, INT64))
    counter.name = "step"
    counter._make_cell()
    return counter
