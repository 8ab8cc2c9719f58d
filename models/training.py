"""Training: `fit` runs a compiled step over batches, with progress, validation and early stopping."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tapegrad.errors import OptionError, ShapeError
from tapegrad.foreign import readable
from tapegrad.ir.dtypes import is_floating
from tapegrad.jit import Jitted, jit
from tapegrad.models.data.dataset import Dataset
from tapegrad.models.data.loader import DataLoader
from tapegrad.models.losses import binary_cross_entropy_with_logits
from tapegrad.models.module import Module
from tapegrad.models.optimizer import Optimizer
from tapegrad.models.schedules import Schedule
from tapegrad.models.steps import Loss, evaluation_step, training_step
from tapegrad.primitives import FLOAT32
from tapegrad.runtime.devices import CPU
from tapegrad.tensor import Tensor

Array = NDArray[Any]
Pair = tuple[ArrayLike, ArrayLike]

#: Rows that are predicted at once.
PREDICTED_ROWS = 1024


@dataclass
class History:
    """What a training did.

    Attributes
    ----------
    losses : list of float
        The mean training loss of each epoch.
    step_losses : list of float
        The loss of each step.
    validation_losses, validation_accuracies : list of float
        Of each epoch, where there were validation data; accuracies only for integer labels.
    best_epoch : int or None
        The epoch of the lowest validation loss, counted from 0.
    stopped_early : bool
    seconds : float
        Time spent in training steps, without compiling and validating.
    """

    losses: list[float] = field(default_factory=list)
    step_losses: list[float] = field(default_factory=list)
    validation_losses: list[float] = field(default_factory=list)
    validation_accuracies: list[float] = field(default_factory=list)
    best_epoch: int | None = None
    stopped_early: bool = False
    seconds: float = 0.0

    @property
    def steps(self) -> int:
        """The number of steps."""
        return len(self.step_losses)

    @property
    def steps_per_second(self) -> float:
        """Steps for each second spent in them."""
        return self.steps / self.seconds if self.seconds else 0.0


def fit(
    model: Module,
    data: Pair | Dataset | DataLoader,
    loss: Loss,
    optimizer: Optimizer,
    epochs: int = 10,
    batch_size: int = 64,
    *,
    validation: Pair | None = None,
    early_stopping: int | None = None,
    schedule: Schedule | None = None,
    shuffle: bool = True,
    seed: int = 0,
    progress: bool = True,
    step: Jitted | None = None,
) -> History:
    """Train a model with a compiled step.

    Forward pass, gradient and update of a step are one program, and many steps are one native call. Where the model
    lies on a GPU, the data are moved there once.

    Parameters
    ----------
    model : Module
        Called on a batch of examples; trained in place, and left in the mode that it was in.
    data : (x, y), Dataset or DataLoader
        Arrays that share their first axis, cast once; of a Dataset the rows to train on. A DataLoader brings its own
        batch size, order and seed.
    loss : callable
        ``loss(prediction, target)``, a scalar.
    optimizer : Optimizer
    epochs, batch_size : int
        The last batch of an epoch may be shorter.
    validation : (x, y), optional
        Evaluated after each epoch.
    early_stopping : int, optional
        Stop after so many epochs without a lower validation loss, and give the model the weights of the best one.
    schedule : Schedule, optional
        Moves on by one each step.
    shuffle : bool
        Whether each epoch has a new order.
    seed : int
        Seed of the orders.
    progress : bool
        Whether to show a progress bar where there is a terminal.
    step : Jitted, optional
        From `training_step` over the same model, loss and optimizer (``scheduled`` where there is a schedule), to look
        at afterwards.

    Returns
    -------
    History

    Raises
    ------
    OptionError
        Where ``early_stopping`` comes without validation data, or a number is less than 1.
    ShapeError
        Where there are no rows, or arrays do not fit.

    Examples
    --------
    >>> from tapegrad.models import MLP, Adam, cross_entropy, fit
    >>> from tapegrad.models.data import digits
    >>> data, model = digits(), MLP(64, [32], 10)
    >>> history = fit(model, data, cross_entropy, Adam(model.parameters()), epochs=2, progress=False)
    >>> history.steps, history.losses[1] < history.losses[0]
    (46, True)
    """
    if epochs < 1:
        raise OptionError(f"fit: epochs must be at least 1, but is {epochs}")
    if early_stopping is not None and (early_stopping < 1 or validation is None):
        raise OptionError("fit: early_stopping is a number of epochs, at least 1, and needs validation data")
    dtype = model._parameter_dtype() or FLOAT32
    loader = _loader(data, batch_size, shuffle, seed, dtype)
    if not len(loader):
        raise ShapeError("fit: there are no rows to train on" if not loader.rows else "fit: there is no whole batch")
    held_out = _cast(*validation, dtype) if validation is not None else None
    device = _device(model)
    arrays = _placed(loader.arrays, device)
    validated = _placed(held_out, device) if held_out is not None else ()
    history, modes = History(), [(module, module.training) for module in model.modules()]
    if step is None:
        step = training_step(model, loss, optimizer, schedule is not None)
    evaluation = evaluation_step(model, loss)
    best: dict[str, np.ndarray] | None = None
    try:
        with _bar(epochs * len(loader), progress) as advance:
            for epoch in range(epochs):
                model.train()
                history.losses.append(_epoch(step, loader, arrays, schedule, history, advance))
                if held_out is None:
                    continue
                model.eval()
                _validate(evaluation, loss, validated, held_out[1], history)
                if history.best_epoch is None or history.validation_losses[-1] < min(history.validation_losses[:-1]):
                    history.best_epoch = epoch
                    best = model.state_dict() if early_stopping is not None else None
                if early_stopping is not None and epoch - history.best_epoch >= early_stopping:
                    history.stopped_early = True
                    break
    finally:
        for module, training in modes:
            module.training = training
    if best is not None:
        model.load_state_dict(best)
    return history


def predict(model: Module, x: ArrayLike) -> Array:
    """The predictions of a model in evaluation mode, by a compiled program, some rows at a time.

    Parameters
    ----------
    model : Module
        Left in the mode that it was in.
    x : array_like
        Examples along the first axis.

    Returns
    -------
    ndarray

    Examples
    --------
    >>> import numpy as np
    >>> from tapegrad.models import MLP, predict
    >>> predict(MLP(2, [3], 1), np.zeros((5, 2))).shape
    (5, 1)
    """
    rows = np.asarray(readable(x), model._parameter_dtype() or FLOAT32)
    modes = [(module, module.training) for module in model.modules()]
    forward = jit(lambda batch: model(batch))
    try:
        model.eval()
        parts = [np.asarray(forward(rows[start : start + PREDICTED_ROWS])) for start in _starts(len(rows))]
    finally:
        for module, training in modes:
            module.training = training
    return np.concatenate(parts)


def accuracy(prediction: ArrayLike | Tensor, labels: ArrayLike | Tensor, threshold: float = 0.5) -> float:
    """The part of the predictions that name the right class.

    Parameters
    ----------
    prediction : array_like
        Scores of shape ``(n, classes)``, whose largest counts; or one number an example, shape ``(n,)`` or ``(n, 1)``,
        that stands for class 1 where it is above ``threshold``.
    labels : array_like of int, shape (n,)
    threshold : float
        0.5 for probabilities, 0 for logits.

    Returns
    -------
    float

    Raises
    ------
    ShapeError
        Where the shapes do not fit or there are no examples.

    Examples
    --------
    >>> from tapegrad.models import accuracy
    >>> accuracy([[0.1, 0.9], [0.8, 0.2]], [1, 1]), accuracy([0.9, 0.2], [1, 0])
    (0.5, 1.0)
    """
    scores, wanted = np.asarray(readable(prediction)), np.asarray(readable(labels))
    if scores.ndim == wanted.ndim + 1 and scores.shape[-1] > 1:
        named = scores.argmax(-1)
    elif scores.size == wanted.size:
        named = (scores > threshold).reshape(wanted.shape)
    else:
        named = scores
    if named.shape != wanted.shape or not wanted.size:
        raise ShapeError(f"accuracy: predictions of shape {scores.shape} do not fit labels of shape {wanted.shape}")
    return float(np.mean(named == wanted))


# What happens in an epoch ----------------------------------------------------------------------------------------


def _epoch(
    step: Jitted,
    loader: DataLoader,
    arrays: Sequence[Any],
    schedule: Schedule | None,
    history: History,
    advance: Callable[[int, float], None],
) -> float:
    """Train on every batch of the arrays once; the mean loss."""
    size, rows = loader.batch_size, loader.rows
    rates = [schedule.values(len(loader), schedule.last_step)] if schedule is not None else []
    if not step.stats().traces:
        # Compiles, the library functions too, so that the clock below measures training alone.
        program = step.program(*[array[:size] for array in arrays], *[rate[0] for rate in rates])
        if program is not None:
            program.give_frame(program.take_frame())
    epoch, loader.epoch = loader.epoch, loader.epoch + 1
    start = time.perf_counter()
    losses = np.asarray(
        step.epochs(
            *arrays,
            batch_size=size,
            shuffle=loader.shuffle,
            seed=loader.seed,
            drop_last=loader.drop_last,
            first_epoch=epoch,
            per_step=rates,
            progress=lambda steps, loss: advance(steps, float(loss)),
        )
    )[0]
    history.seconds += time.perf_counter() - start
    if schedule is not None:
        schedule.last_step += len(losses)
        schedule.optimizer.lr = schedule.get_last_lr()
    history.step_losses.extend(losses.tolist())
    trained = np.full(len(losses), size)
    if not loader.drop_last and rows % size:
        trained[-1] = rows % size
    return float(np.average(losses.astype(np.float64), weights=trained))


def _validate(evaluation: Jitted, loss: Loss, held_out: Sequence[Any], y: Array, history: History) -> None:
    """Append validation loss and accuracy; ``y`` are the targets for NumPy."""
    total, parts = 0.0, []
    for start in _starts(len(y)):
        batch = [array[start : start + PREDICTED_ROWS] for array in held_out]
        value, prediction = evaluation(*batch)
        total += value.item() * len(batch[0])
        parts.append(np.asarray(prediction))
    history.validation_losses.append(total / len(y))
    if y.dtype.kind in "iu":
        threshold = 0.0 if loss is binary_cross_entropy_with_logits else 0.5
        history.validation_accuracies.append(accuracy(np.concatenate(parts), y, threshold))


def _starts(rows: int) -> range:
    return range(0, max(rows, 1), PREDICTED_ROWS)


# What goes in and what is shown -----------------------------------------------------------------------------------


def _device(model: Module) -> str:
    """Where a model lies."""
    return next((parameter.device for parameter in model.parameters()), CPU)


def _placed(arrays: Sequence[Array], device: str) -> Sequence[Any]:
    """Arrays as a step takes them again and again: on the device, where that is not the CPU."""
    return arrays if device == CPU else [Tensor(array, device=device) for array in arrays]


def _cast(x: ArrayLike, y: ArrayLike, dtype: np.dtype) -> tuple[Array, Array]:
    """Examples in the dtype of the parameters; targets too, unless they are labels."""
    examples, targets = np.asarray(readable(x), dtype), np.asarray(readable(y))
    targets = targets.astype(dtype if is_floating(targets.dtype) else np.int64, copy=False)
    if not examples.ndim or not targets.ndim or len(examples) != len(targets) or not len(examples):
        raise ShapeError(
            f"fit: x of shape {examples.shape} and y of shape {targets.shape} must have equally many rows, at least one"
        )
    return examples, targets


def _loader(
    data: Pair | Dataset | DataLoader, batch_size: int, shuffle: bool, seed: int, dtype: np.dtype
) -> DataLoader:
    if isinstance(data, DataLoader):
        if len(data.arrays) != 2:
            raise OptionError(f"fit: the loader deals out {len(data.arrays)} arrays, not examples and targets")
        return data
    x, y = (data.train_x, data.train_y) if isinstance(data, Dataset) else data
    return DataLoader(*_cast(x, y, dtype), batch_size=batch_size, shuffle=shuffle, seed=seed, dtype=dtype)


class _bar:
    """A progress bar over steps; gives a function that moves it."""

    def __init__(self, steps: int, shown: bool) -> None:
        self.steps, self.shown = steps, shown

    def __enter__(self) -> Callable[[int, float], None]:
        if not self.shown:
            self.bar = None
            return lambda steps, loss: None
        from tqdm.auto import tqdm

        # None: only where the output is a terminal.
        bar = self.bar = tqdm(total=self.steps, unit="step", disable=None, leave=True)

        def advance(steps: int, loss: float) -> None:
            bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
            bar.update(steps)

        return advance

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.close()
