"""The steps that `fit` and the command line compile.

Where no script of the user's called them, as on the command line, the lines of this file stand for the user's in
graphs and programs.
"""

from __future__ import annotations

from collections.abc import Callable

from tapegrad.jit import Jitted, jit
from tapegrad.models.module import Module
from tapegrad.models.optimizer import Optimizer
from tapegrad.tensor import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]


def training_step(model: Module, loss: Loss, optimizer: Optimizer, scheduled: bool = False) -> Jitted:
    """The step that `fit` runs, as one program: forward, backward, update.

    Parameters
    ----------
    model : Module
    loss : callable
        ``loss(prediction, target)``, a scalar.
    optimizer : Optimizer
    scheduled : bool
        Whether the step has a third argument, the learning rate, float64.

    Returns
    -------
    Jitted
        ``step(x, y)`` gives the loss; look at it with `tapegrad.explain`.

    Examples
    --------
    >>> import numpy as np
    >>> from tapegrad.models import MLP, SGD, mse_loss, training_step
    >>> model = MLP(1, [], 1)
    >>> step = training_step(model, mse_loss, SGD(model.parameters(), lr=0.1))
    >>> x = np.ones((2, 1), "float32")
    >>> bool(step(x, x).item() > step(x, x).item())
    True
    """

    def step(x: Tensor, y: Tensor) -> Tensor:
        prediction = model(x)
        value = loss(prediction, y)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        return value

    def scheduled_step(x: Tensor, y: Tensor, lr: Tensor) -> Tensor:
        optimizer.lr = lr
        return step(x, y)

    return jit(scheduled_step if scheduled else step)


def evaluation_step(model: Module, loss: Loss) -> Jitted:
    """The evaluation that `fit` runs, as one program: ``evaluate(x, y)`` gives the loss and the predictions."""

    def evaluate(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        prediction = model(x)
        return loss(prediction, y), prediction

    return jit(evaluate)
