"""Optimizers: SGD, Adam, AdamW and RMSprop, with torch's keywords, defaults and arithmetic.

Parameters lie in one flat buffer a dtype, and so does the state of the optimizer, from construction on: a compiled
step updates both in place. Hyperparameters are runtime scalars: assigning ``optimizer.lr = 3e-4`` takes effect in
a compiled step and compiles nothing, unless a term appears or goes away (``momentum`` from 0 to 0.9).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import ClassVar

import numpy as np

from tapegrad import functions
from tapegrad.errors import OptionError
from tapegrad.models.optimizer import Hyperparameter, Optimizer, replayable
from tapegrad.primitives import FLOAT64
from tapegrad.tensor import Tensor


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

    @replayable
    def _update(self, index: int, parameter: Tensor, gradient: Tensor) -> Tensor:
        dtype = parameter.dtype
        if self._active["weight_decay"]:
            gradient = gradient + self._number("weight_decay", dtype) * parameter
        if self._active["momentum"]:
            momentum, buffer = self._number("momentum", dtype), self._state["momentum_buffer"][index]
            added = gradient
            if self._active["dampening"]:
                kept = functions.astype(1 - self._number("dampening", FLOAT64), dtype)
                added = functions.where(self._counts[self._count_of[index]] == 1, 1.0, kept) * gradient
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

    def _factors(self, count: int, dtype: np.dtype) -> tuple[Tensor, ...]:
        """How far the two means move, the size of the step, and the correction of the root."""
        factors = self._shared.get((count, dtype))
        if factors is None:
            # Bias corrections differ from 1 by little: in float64 until they meet the parameter.
            lr, beta1, beta2 = (self._number(name, FLOAT64) for name in ("lr", "beta1", "beta2"))
            steps = functions.astype(self._counts[count], FLOAT64)
            size = lr / (1 - functions.power(beta1, steps))
            correction = 1 / functions.sqrt(1 - functions.power(beta2, steps))
            wide = (1 - beta1, 1 - beta2, size, correction)
            factors = self._shared[count, dtype] = tuple(functions.astype(factor, dtype) for factor in wide)
        return factors

    @replayable
    def _update(self, index: int, parameter: Tensor, gradient: Tensor) -> Tensor:
        dtype = parameter.dtype
        if self._active["weight_decay"]:
            decay = self._number("weight_decay", FLOAT64)
            if self._decoupled:
                parameter = parameter * functions.astype(1 - self._number("lr", FLOAT64) * decay, dtype)
            else:
                gradient = gradient + functions.astype(decay, dtype) * parameter
        first, second, size, correction = self._factors(self._count_of[index], dtype)
        mean, square = self._state["exp_avg"][index], self._state["exp_avg_sq"][index]
        mean.data = mean + first * (gradient - mean)
        square.data = self._number("beta2", dtype) * square + second * (gradient * gradient)
        if self.amsgrad:
            largest = self._state["max_exp_avg_sq"][index]
            largest.data = functions.maximum(largest, square)
            square = largest
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

    @replayable
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
