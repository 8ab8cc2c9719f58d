"""Layers that shift and scale their input to mean 0 and variance 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tapegrad import functions, tape
from tapegrad.errors import ShapeError
from tapegrad.ir import sizes
from tapegrad.ir.dtypes import computed
from tapegrad.models.layers import parameter_dtype
from tapegrad.models.module import Module, Parameter
from tapegrad.primitives import shape_text
from tapegrad.recording import TensorLike, as_tensor, record, to_floating
from tapegrad.tensor import Tensor


class LayerNorm(Module):
    """Mean 0 and variance 1 over the last axes of each example, then ``* weight + bias``.

    Parameters
    ----------
    normalized_shape : int or sequence of int
        The sizes of the last axes.
    eps : float
        Added to the variance.
    elementwise_affine, bias : bool
        Whether there are a weight and a bias.
    dtype : dtype, optional
        Of the parameters.

    References
    ----------
    Ba, Kiros and Hinton, "Layer Normalization", 2016.

    Examples
    --------
    >>> from tapegrad.models import LayerNorm
    >>> LayerNorm(2)([[1.0, 3.0]]).numpy().round(3).tolist()
    [[-1.0, 1.0]]
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        dtype: Any = None,
    ) -> None:
        self.normalized_shape: tuple[int, ...] = (
            (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        )
        self.eps = eps
        chosen = parameter_dtype(dtype)
        self.register_parameter(
            "weight", Parameter(np.ones(self.normalized_shape, chosen)) if elementwise_affine else None
        )
        self.register_parameter(
            "bias", Parameter(np.zeros(self.normalized_shape, chosen)) if elementwise_affine and bias else None
        )

    def forward(self, x: TensorLike) -> Tensor:
        """The normalized ``x``, of its shape."""
        x = _floating(x, self._parameter_dtype())
        x, given = _wide(x), x.dtype
        rank = len(self.normalized_shape)
        shape = x._entry.shape
        last = shape[len(shape) - rank :]
        fits = len(last) == rank
        if not fits or any(sizes.unify(a, b) is None for a, b in zip(last, self.normalized_shape, strict=True)):
            raise ShapeError(
                f"LayerNorm: the input has shape {shape_text(shape)}; its last axes must be "
                f"{shape_text(self.normalized_shape)}"
            )
        axes = tuple(range(-rank, 0))
        centred = x - functions.mean(x, axes, keepdims=True)
        variance = functions.mean(centred * centred, axes, keepdims=True)
        return _as(_affine(centred / functions.sqrt(variance + self.eps), self.weight, self.bias), given)

    def extra_repr(self) -> str:
        """Shape and options."""
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.weight is not None}"


class BatchNorm1d(Module):
    """Mean 0 and variance 1 over the batch for each feature, then ``* weight + bias``.

    While training, mean and variance are those of the batch, and running ones follow them; while evaluating, the
    running ones are used.

    Parameters
    ----------
    num_features : int
        The size of axis 1.
    eps : float
        Added to the variance.
    momentum : float or None
        How far the running statistics move towards those of a batch; None for their plain mean over all batches.
    affine : bool
        Whether there are a weight and a bias.
    track_running_stats : bool
        Without, evaluation too uses the statistics of the batch.
    dtype : dtype, optional
        Of the parameters.

    Attributes
    ----------
    running_mean, running_var : Tensor, shape (num_features,)
        Buffers; the variance with Bessel's correction.
    num_batches_tracked : Tensor of int64
        Buffer.

    Raises
    ------
    ShapeError
        Where the input is not of shape ``(n, num_features)`` or ``(n, num_features, length)``, or a batch to train on
        has a single value a feature.

    References
    ----------
    Ioffe and Szegedy, "Batch Normalization", 2015.

    Examples
    --------
    >>> from tapegrad.models import BatchNorm1d
    >>> norm = BatchNorm1d(1)
    >>> norm([[1.0], [3.0]]).numpy().round(3).tolist(), norm.running_mean.numpy().round(3)
    ([[-1.0], [1.0]], array([0.2], dtype=float32))
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        dtype: Any = None,
    ) -> None:
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        chosen = parameter_dtype(dtype)
        self.register_parameter("weight", Parameter(np.ones(num_features, chosen)) if affine else None)
        self.register_parameter("bias", Parameter(np.zeros(num_features, chosen)) if affine else None)
        tracked = track_running_stats
        self.register_buffer("running_mean", Tensor(np.zeros(num_features, chosen)) if tracked else None)
        self.register_buffer("running_var", Tensor(np.ones(num_features, chosen)) if tracked else None)
        self.register_buffer("num_batches_tracked", Tensor(np.int64(0)) if tracked else None)

    def forward(self, x: TensorLike) -> Tensor:
        """The normalized ``x``, of its shape."""
        x = _floating(x, self._parameter_dtype())
        x, given = _wide(x), x.dtype
        shape = x._entry.shape
        if len(shape) not in (2, 3) or sizes.unify(shape[1], self.num_features) is None:
            raise ShapeError(
                f"BatchNorm1d({self.num_features}): the input has shape {shape_text(shape)}; it must be "
                f"(n, {self.num_features}) or (n, {self.num_features}, length)"
            )
        axes = (0,) if len(shape) == 2 else (0, 2)
        if self.training or self.running_mean is None:
            mean = functions.mean(x, axes, keepdims=True)
            centred = x - mean
            variance = functions.mean(centred * centred, axes, keepdims=True)
            if self.training:
                centred, mean, variance = self._track(x, axes, centred, mean, variance)
        else:
            view = (1, self.num_features, 1)[: len(shape)]
            centred = x - functions.reshape(self.running_mean, view)
            variance = functions.reshape(self.running_var, view)
        normal = centred / functions.sqrt(variance + self.eps)
        if self.weight is None:
            return _as(normal, given)
        view = (self.num_features,) + (1,) * (len(shape) - 2)
        return _as(_affine(normal, functions.reshape(self.weight, view), functions.reshape(self.bias, view)), given)

    def _track(
        self, x: Tensor, axes: tuple[int, ...], centred: Tensor, mean: Tensor, variance: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Check the batch and move the running statistics towards it."""
        shape = x.shape
        count: Any = 1
        for axis in axes:
            count = count * shape[axis]
        message = f"BatchNorm1d({self.num_features}): a batch to train on needs more than one value a feature"
        if isinstance(count, int):
            if count == 1:
                raise ShapeError(f"{message}; the input has shape {shape_text(shape)}; call .eval() to predict")
            bessel: Any = count / max(count - 1, 1)
        else:
            number = as_tensor(count, x.dtype)
            bessel = number / functions.maximum(number - 1, 1)
            variance = record("checked", (variance, functions.not_equal(number, 1)), message=message)
        if self.running_mean is None:
            return centred, mean, variance
        with tape.grad_mode(False):
            self.num_batches_tracked.data = self.num_batches_tracked + 1
            for buffer, batch in ((self.running_mean, mean), (self.running_var, variance * bessel)):
                old = _wide(buffer)
                target = functions.astype(functions.reshape(batch, (self.num_features,)), old.dtype)
                step: Any = self.momentum
                if step is None:
                    step = 1 / functions.astype(self.num_batches_tracked, old.dtype)
                buffer.data = old + step * (target - old)
        return centred, mean, variance

    def extra_repr(self) -> str:
        """Width and options."""
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.weight is not None}"


def _floating(x: TensorLike, dtype: np.dtype | None) -> Tensor:
    """``x`` in the dtype of the parameters; without any, in its own or the default floating dtype."""
    return to_floating(x)[0] if dtype is None else functions.astype(as_tensor(x, dtype), dtype)


def _wide(x: Tensor) -> Tensor:
    """``x``, or where it is a half, its float32: statistics are added up there, and ``eps`` is no half."""
    return _as(x, computed(x.dtype))


def _as(x: Tensor, dtype: np.dtype) -> Tensor:
    return x if x.dtype == dtype else functions.astype(x, dtype)


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if weight is not None:
        x = x * weight
    return x if bias is None else x + bias
