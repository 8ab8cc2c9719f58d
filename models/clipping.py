"""Gradient clipping, between ``loss.backward()`` and ``optimizer.step()``."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from tapegrad import functions, tape
from tapegrad.errors import OptionError
from tapegrad.ir.dtypes import computed, join_floating
from tapegrad.tensor import Tensor


def clip_grad_norm_(parameters: Tensor | Iterable[Tensor], max_norm: float, norm_type: float = 2.0) -> Tensor:
    """Scale all gradients together so that their norm is at most ``max_norm``.

    Parameters
    ----------
    parameters : Tensor or iterable of Tensor
        Those without a ``grad`` are left out.
    max_norm : float
    norm_type : float
        2 for the Euclidean norm, ``math.inf`` for the largest absolute value.

    Returns
    -------
    Tensor
        The norm before clipping, a scalar.

    Raises
    ------
    OptionError
        Where ``norm_type`` is not positive.

    References
    ----------
    Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks", 2013, algorithm 1.

    Examples
    --------
    >>> import tapegrad as tg
    >>> from tapegrad.models import clip_grad_norm_
    >>> p = tg.Tensor([3.0, 4.0], requires_grad=True)
    >>> (p * p / 2).sum().backward()
    >>> clip_grad_norm_([p], 1.0).item(), p.grad.numpy().round(3)
    (5.0, array([0.6, 0.8], dtype=float32))
    """
    if not norm_type > 0:
        raise OptionError(f"clip_grad_norm_: norm_type must be positive, not {norm_type}")
    with tape.grad_mode(False):
        found = _with_gradients(parameters)
        if not found:
            return Tensor(np.float32(0.0))
        dtype = computed(join_floating([gradient.dtype for _, gradient in found]))
        gradients = [functions.astype(gradient, dtype) for _, gradient in found]
        total = _norm(gradients, norm_type)
        scale = functions.minimum(max_norm / (total + 1e-6), 1.0)
        for parameter, gradient in found:
            parameter.grad = gradient * functions.astype(scale, gradient.dtype)
    return total


def clip_grad_value_(parameters: Tensor | Iterable[Tensor], clip_value: float) -> None:
    """Limit each element of each gradient to the range from ``-clip_value`` to ``clip_value``.

    Examples
    --------
    >>> import tapegrad as tg
    >>> from tapegrad.models import clip_grad_value_
    >>> p = tg.Tensor([-3.0, 0.5], requires_grad=True)
    >>> (p * p / 2).sum().backward()
    >>> clip_grad_value_([p], 1.0)
    >>> p.grad.tolist()
    [-1.0, 0.5]
    """
    with tape.grad_mode(False):
        for parameter, gradient in _with_gradients(parameters):
            parameter.grad = functions.clip(gradient, -clip_value, clip_value)


def _with_gradients(parameters: Tensor | Iterable[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """The parameters that have a gradient, with it; a tied one once."""
    tensors = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    unique = {id(tensor): tensor for tensor in tensors}.values()
    return [(tensor, gradient) for tensor in unique if (gradient := tensor.grad) is not None]


def _norm(gradients: list[Tensor], norm_type: float) -> Tensor:
    sizes = [functions.absolute(gradient) for gradient in gradients]
    if norm_type == math.inf:
        largest = functions.max(sizes[0])
        for size in sizes[1:]:
            largest = functions.maximum(largest, functions.max(size))
        return largest
    if norm_type == 2:
        powers = [functions.sum(gradient * gradient) for gradient in gradients]
    else:
        powers = [functions.sum(functions.power(size, norm_type)) for size in sizes]
    total = powers[0]
    for power in powers[1:]:
        total = total + power
    return functions.sqrt(total) if norm_type == 2 else functions.power(total, 1.0 / norm_type)
