"""Optimizers: SGD, Adam, AdamW and RMSprop, with torch's keywords, defaults and arithmetic.

Parameters lie in one flat buffer a dtype, and so does the state of the optimizer, from construction on: a compiled
step updates both in place. Hyperparameters are runtime scalars: assigning ``optimizer.lr = 3e-4`` takes effect in
a compiled step and compiles nothing, unless a term appears or goes away (``momentum`` from 0 to 0.9).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any, ClassVar

import numpy as np

from tapegrad import functions, structure, tape
from tapegrad.errors import OptionError, StateError, TracingError
from tapegrad.models.module import Parameter, assign, clear_gradients
from tapegrad.models.storage import flatten_storage
from tapegrad.primitives import FLOAT64, INT64
from tapegrad.recording import record, weak_scalar
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
        flatten_storage(self.params)
        for name, value in hyperparameters.items():
            setattr(self, name, value)
        self._prepare()

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        if not isinstance(getattr(type(self), name, None), Hyperparameter | property):
            structure.bump()

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
        return record("cast", (self._scalars[name],), dtype=dtype)

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
                tensors = [Tensor(np.zeros(parameter.shape, parameter.dtype)) for parameter in self.params]
                for parameter, tensor in zip(self.params, tensors, strict=True):
                    tensor.name = f"{parameter.name}.{slot}" if parameter.name else slot
                flatten_storage(tensors)
                self._state[slot] = tensors
        if self._counting() and not self._counts:
            self._counts = [_counter(0)]
            self._count_of = [0] * len(self.params)

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

    def step(self) -> None:
        """Update every parameter that has a ``grad``, and run the tape unless inside ``@jit``.

        Raises
        ------
        GradientError
            Where a jitted step has used a gradient up.
        """
        trace = tape.local.trace
        with tape.grad_mode(False):
            gradients = [parameter.grad for parameter in self.params]
            active = [index for index, gradient in enumerate(gradients) if gradient is not None]
            if self._counts:
                self._split_counts(active)
            for number in sorted({self._count_of[index] for index in active} if self._counts else ()):
                self._counts[number].data = self._counts[number] + 1
            for index in active:
                parameter, gradient = self.params[index], gradients[index]
                assert gradient is not None
                parameter.data = self._update(index, parameter, gradient)
                if trace is not None:
                    trace.consumed.add(id(parameter))
        if trace is None:
            tape.run()

    def _update(self, index: int, parameter: Tensor, gradient: Tensor) -> Tensor:
        """The new value of a parameter; assigns its new state."""
        raise OptionError(f"{type(self).__name__} has no _update(); define one")

    def _steps(self, index: int) -> Tensor:
        """The number of steps of a parameter, this one included, as float64."""
        return functions.astype(self._counts[self._count_of[index]], FLOAT64)

    # Saving ---------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, np.ndarray]:
        """State and hyperparameters by name (``exp_avg.0``, ``step.0``, ``lr``), as copies."""
        state = {f"{slot}.{i}": np.array(t._value()) for slot, ts in self._state.items() for i, t in enumerate(ts)}
        if self._counts:
            counts = [np.array(count._value()) for count in self._counts]
            state.update({f"step.{index}": counts[number] for index, number in enumerate(self._count_of)})
        state.update({name: np.array(tensor._value()) for name, tensor in self._scalars.items()})
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


class SGD(Optimizer):
    """Stochastic gradient descent with momentum.

    ``b = momentum * b + (1 - dampening) * g`` (at first ``b = g``), then ``p -= lr * b``; with ``nesterov``,
    ``p -= lr * (g + momentum * b)``. ``weight_decay * p`` is added to the gradient.

    Parameters
    ----------
    params : iterable of Parameter
    lr, momentum, dampening, weight_decay : float
        Assignable.
    nesterov : bool
        Needs momentum and no dampening.

    References
    ----------
    Sutskever, Martens, Dahl and Hinton, "On the importance of initialization and momentum in deep learning", 2013.

    Examples
    --------
    >>> import tapegrad as tg
    >>> from tapegrad.models import SGD
    >>> p = tg.Tensor([1.0], requires_grad=True)
    >>> optimizer = SGD([p], lr=0.5)
    >>> (p * p).sum().backward()
    >>> optimizer.step()
    >>> p.tolist()
    [0.0]
    """

    momentum, dampening, weight_decay = Hyperparameter(), Hyperparameter(), Hyperparameter()
    _switches = ("momentum", "dampening", "weight_decay")

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        if nesterov and (momentum == 0 or dampening != 0):
            raise OptionError("SGD: nesterov needs momentum > 0 and dampening = 0")
        self.nesterov = nesterov
        super().__init__(params, lr=lr, momentum=momentum, dampening=dampening, weight_decay=weight_decay)

    def _slots(self) -> tuple[str, ...]:
        return ("momentum_buffer",) if self._active["momentum"] else ()

    def _counting(self) -> bool:
        return self._active["momentum"] and self._active["dampening"]

    def _options(self) -> tuple[Hashable, ...]:
        return (self.nesterov,)

    def _update(self, index: int, parameter: Tensor, gradient: Tensor) -> Tensor:
        dtype = parameter.dtype
        if self._active["weight_decay"]:
            gradient = gradient + self._number("weight_decay", dtype) * parameter
        if self._active["momentum"]:
            momentum, buffer = self._number("momentum", dtype), self._state["momentum_buffer"][index]
            added = gradient
            if self._active["dampening"]:
                kept = functions.astype(1 - self._number("dampening", FLOAT64), dtype)
                added = functions.where(self._steps(index) == 1, 1.0, kept) * gradient
            buffer.data = momentum * buffer + added
            gradient = gradient + momentum * buffer if self.nesterov else buffer
        return parameter - self._number("lr", dtype) * gradient


class Adam(Optimizer):
    """Adam: steps by the mean of the gradients over the root of the mean of their squares.

    Parameters
    ----------
    params : iterable of Parameter
    lr : float
    betas : (float, float)
        How slowly the two means move; assignable, as are ``beta1`` and ``beta2``.
    eps : float
        Added to the root.
    weight_decay : float
        ``weight_decay * p`` is added to the gradient.
    amsgrad : bool
        Divide by the largest mean so far.

    References
    ----------
    Kingma and Ba, "Adam: A Method for Stochastic Optimization", 2015, algorithm 1.

    Examples
    --------
    >>> import tapegrad as tg
    >>> from tapegrad.models import Adam
    >>> p = tg.Tensor([1.0], requires_grad=True)
    >>> optimizer = Adam([p], lr=0.25)
    >>> (p * p).sum().backward()
    >>> optimizer.step()
    >>> round(p.item(), 4)
    0.75
    """

    beta1, beta2 = Hyperparameter(below=1.0), Hyperparameter(below=1.0)
    eps, weight_decay = Hyperparameter(), Hyperparameter()
    _decoupled: ClassVar[bool] = False

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
    ) -> None:
        self.amsgrad = amsgrad
        super().__init__(params, lr=lr, beta1=betas[0], beta2=betas[1], eps=eps, weight_decay=weight_decay)

    @property
    def betas(self) -> tuple[float, float]:
        """How slowly the two means move."""
        return self.beta1, self.beta2

    @betas.setter
    def betas(self, betas: tuple[float, float]) -> None:
        self.beta1, self.beta2 = betas

    def _slots(self) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq") + (("max_exp_avg_sq",) if self.amsgrad else ())

    def _counting(self) -> bool:
        return True

    def _options(self) -> tuple[Hashable, ...]:
        return (self.amsgrad,)

    def _update(self, index: int, parameter: Tensor, gradient: Tensor) -> Tensor:
        dtype = parameter.dtype
        # Bias corrections differ from 1 by little: in float64 until they meet the parameter.
        lr, beta1, beta2 = (self._number(name, FLOAT64) for name in ("lr", "beta1", "beta2"))
        steps = self._steps(index)
        if self._active["weight_decay"]:
            decay = self._number("weight_decay", FLOAT64)
            if self._decoupled:
                parameter = parameter * functions.astype(1 - lr * decay, dtype)
            else:
                gradient = gradient + functions.astype(decay, dtype) * parameter
        mean, square = self._state["exp_avg"][index], self._state["exp_avg_sq"][index]
        mean.data = mean + functions.astype(1 - beta1, dtype) * (gradient - mean)
        added = functions.astype(1 - beta2, dtype) * (gradient * gradient)
        square.data = functions.astype(beta2, dtype) * square + added
        if self.amsgrad:
            largest = self._state["max_exp_avg_sq"][index]
            largest.data = functions.maximum(largest, square)
            square = largest
        size = functions.astype(lr / (1 - functions.power(beta1, steps)), dtype)
        correction = functions.astype(1 / functions.sqrt(1 - functions.power(beta2, steps)), dtype)
        return parameter - size * (mean / (functions.sqrt(square) * correction + self._number("eps", dtype)))


class AdamW(Adam):
    """Adam with decoupled weight decay: ``p *= 1 - lr * weight_decay`` before the step, which the means never see.

    Parameters
    ----------
    params : iterable of Parameter
    lr, betas, eps, amsgrad
        As for `Adam`.
    weight_decay : float
        Assignable.

    References
    ----------
    Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019, algorithm 2.

    Examples
    --------
    >>> import tapegrad as tg
    >>> from tapegrad.models import AdamW
    >>> AdamW([tg.Tensor([1.0], requires_grad=True)]).weight_decay
    0.01
    """

    _decoupled = True

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad)


class RMSprop(Optimizer):
    """Steps by the gradient over the root of the running mean of its squares.

    Parameters
    ----------
    params : iterable of Parameter
    lr : float
    alpha : float
        How slowly the mean moves.
    eps : float
        Added to the root.
    weight_decay : float
        ``weight_decay * p`` is added to the gradient.
    momentum : float
    centered : bool
        Subtract the square of the mean gradient: divide by its standard deviation.

    References
    ----------
    Tieleman and Hinton, "Lecture 6.5: rmsprop", 2012; Graves, "Generating Sequences With Recurrent Neural Networks",
    2013, equations 38 to 45, for the centered form.

    Examples
    --------
    >>> import tapegrad as tg
    >>> from tapegrad.models import RMSprop
    >>> p = tg.Tensor([1.0], requires_grad=True)
    >>> optimizer = RMSprop([p], lr=0.1, alpha=0.75)
    >>> (p * p).sum().backward()
    >>> optimizer.step()
    >>> round(p.item(), 4)
    0.8
    """

    alpha, eps = Hyperparameter(below=1.0), Hyperparameter()
    weight_decay, momentum = Hyperparameter(), Hyperparameter()
    _switches = ("weight_decay", "momentum")

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
    ) -> None:
        self.centered = centered
        super().__init__(params, lr=lr, alpha=alpha, eps=eps, weight_decay=weight_decay, momentum=momentum)

    def _slots(self) -> tuple[str, ...]:
        momentum = ("momentum_buffer",) if self._active["momentum"] else ()
        return ("square_avg", *(("grad_avg",) if self.centered else ()), *momentum)

    def _options(self) -> tuple[Hashable, ...]:
        return (self.centered,)

    def _update(self, index: int, parameter: Tensor, gradient: Tensor) -> Tensor:
        dtype = parameter.dtype
        alpha = self._number("alpha", FLOAT64)
        moved = functions.astype(1 - alpha, dtype)
        if self._active["weight_decay"]:
            gradient = gradient + self._number("weight_decay", dtype) * parameter
        square = self._state["square_avg"][index]
        square.data = functions.astype(alpha, dtype) * square + moved * (gradient * gradient)
        variance: Tensor = square
        if self.centered:
            mean = self._state["grad_avg"][index]
            mean.data = mean + moved * (gradient - mean)
            variance = square - mean * mean
        direction = gradient / (functions.sqrt(variance) + self._number("eps", dtype))
        if self._active["momentum"]:
            buffer = self._state["momentum_buffer"][index]
            buffer.data = self._number("momentum", dtype) * buffer + direction
            direction = buffer
        return parameter - self._number("lr", dtype) * direction


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
        if parameter.dtype.kind != "f" or not parameter.is_leaf:
            raise OptionError(
                f"{name}: a parameter must be floating and given, not computed; this one is {parameter.dtype}"
                + ("" if parameter.is_leaf else " and computed")
            )
    return parameters


def _counter(value: int) -> Tensor:
    """A step count."""
    counter = Tensor(np.asarray(value, INT64), name="step")
    counter._make_cell()
    return counter
