"""Learning-rate schedules: functions of the step count.

``schedule(step)`` is the learning rate of a step, ``schedule.step()`` moves on by one and sets ``optimizer.lr``, and
``schedule.values(n)`` are the rates of the first ``n`` steps, to be scanned over. Names and formulas are torch's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from tapegrad.errors import OptionError
from tapegrad.models.optimizer import Optimizer


class Schedule:
    """What all schedules share; a subclass has a `factor`.

    Parameters
    ----------
    optimizer : Optimizer
        Its ``lr`` at this moment is the base that the schedule multiplies.

    Attributes
    ----------
    base_lr : float
    last_step : int
        The number of the step whose rate is set.

    Examples
    --------
    >>> import tapegrad as tg
    >>> from tapegrad.models import SGD, Schedule
    >>> class Inverse(Schedule):
    ...     def factor(self, step):
    ...         return 1 / (step + 1)
    >>> optimizer = SGD([tg.Tensor([0.0], requires_grad=True)], lr=1.0)
    >>> schedule = Inverse(optimizer)
    >>> schedule.step()
    >>> optimizer.lr, schedule.values(3).round(3).tolist()
    (0.5, [1.0, 0.5, 0.333])
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.base_lr: float = optimizer.lr
        self.last_step = 0
        optimizer.lr = self(0)

    def factor(self, step: int) -> float:
        """What the base is multiplied by at a step, counted from 0."""
        return 1.0

    def __call__(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        return self.base_lr * self.factor(step)

    def step(self) -> None:
        """Move on to the next step."""
        self.last_step += 1
        self.optimizer.lr = self(self.last_step)

    def values(self, steps: int, start: int = 0) -> np.ndarray:
        """The learning rates of ``steps`` steps from ``start`` on, float64."""
        return np.array([self(step) for step in range(start, start + steps)], np.float64)

    def get_last_lr(self) -> float:
        """The rate that is set."""
        return self(self.last_step)

    def state_dict(self) -> dict[str, float]:
        """Base and position."""
        return {"base_lr": self.base_lr, "last_step": self.last_step}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on where another schedule of this kind stood."""
        self.base_lr, self.last_step = float(state["base_lr"]), int(state["last_step"])
        self.optimizer.lr = self(self.last_step)


class StepLR(Schedule):
    """Multiply by ``gamma`` every ``step_size`` steps.

    Examples
    --------
    >>> import tapegrad as tg
    >>> from tapegrad.models import SGD, StepLR
    >>> StepLR(SGD([tg.Tensor([0.0], requires_grad=True)], lr=1.0), 2, gamma=0.5).values(5).tolist()
    [1.0, 1.0, 0.5, 0.5, 0.25]
    """

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1) -> None:
        if step_size < 1:
            raise OptionError(f"StepLR: step_size must be at least 1, but is {step_size}")
        self.step_size, self.gamma = step_size, gamma
        super().__init__(optimizer)

    def factor(self, step: int) -> float:
        """A power of gamma."""
        return float(self.gamma ** (step // self.step_size))


class ExponentialLR(Schedule):
    """Multiply by ``gamma`` every step.

    Examples
    --------
    >>> import tapegrad as tg
    >>> from tapegrad.models import SGD, ExponentialLR
    >>> ExponentialLR(SGD([tg.Tensor([0.0], requires_grad=True)], lr=1.0), 0.5).values(3).tolist()
    [1.0, 0.5, 0.25]
    """

    def __init__(self, optimizer: Optimizer, gamma: float) -> None:
        self.gamma = gamma
        super().__init__(optimizer)

    def factor(self, step: int) -> float:
        """A power of gamma."""
        return float(self.gamma**step)


class CosineAnnealingLR(Schedule):
    """Half a cosine from the base down to ``eta_min`` over ``T_max`` steps, and ``eta_min`` after that.

    References
    ----------
    Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", 2017, equation 5, without restarts.

    Examples
    --------
    >>> import tapegrad as tg
    >>> from tapegrad.models import SGD, CosineAnnealingLR
    >>> CosineAnnealingLR(SGD([tg.Tensor([0.0], requires_grad=True)], lr=1.0), 2).values(4).round(3).tolist()
    [1.0, 0.5, 0.0, 0.0]
    """

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0) -> None:
        if T_max < 1:
            raise OptionError(f"CosineAnnealingLR: T_max must be at least 1, but is {T_max}")
        self.T_max, self.eta_min = T_max, eta_min
        super().__init__(optimizer)

    def __call__(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        part = min(step, self.T_max) / self.T_max
        return self.eta_min + (self.base_lr - self.eta_min) * (1 + math.cos(math.pi * part)) / 2


class LinearLR(Schedule):
    """A straight line from ``start_factor`` to ``end_factor`` times the base over ``total_iters`` steps: a warm-up.

    Examples
    --------
    >>> import tapegrad as tg
    >>> from tapegrad.models import SGD, LinearLR
    >>> schedule = LinearLR(SGD([tg.Tensor([0.0], requires_grad=True)], lr=1.0), start_factor=0.5, total_iters=2)
    >>> schedule.values(4).tolist()
    [0.5, 0.75, 1.0, 1.0]
    """

    def __init__(
        self, optimizer: Optimizer, start_factor: float = 1.0 / 3.0, end_factor: float = 1.0, total_iters: int = 5
    ) -> None:
        if total_iters < 1:
            raise OptionError(f"LinearLR: total_iters must be at least 1, but is {total_iters}")
        self.start_factor, self.end_factor, self.total_iters = start_factor, end_factor, total_iters
        super().__init__(optimizer)

    def factor(self, step: int) -> float:
        """A point on the line."""
        part = min(step, self.total_iters) / self.total_iters
        return self.start_factor + (self.end_factor - self.start_factor) * part


class WarmupLR(Schedule):
    """From near 0 to the base in ``warmup_steps`` equal steps; then ``after``, whose steps are counted from there.

    Parameters
    ----------
    optimizer : Optimizer
    warmup_steps : int
        The first step already has ``1 / warmup_steps`` of the base.
    after : Schedule, optional
        A schedule over the same optimizer; the base stays where None.

    Examples
    --------
    >>> import tapegrad as tg
    >>> from tapegrad.models import SGD, CosineAnnealingLR, WarmupLR
    >>> optimizer = SGD([tg.Tensor([0.0], requires_grad=True)], lr=1.0)
    >>> WarmupLR(optimizer, 2, after=CosineAnnealingLR(optimizer, 2)).values(5).round(3).tolist()
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """

    def __init__(self, optimizer: Optimizer, warmup_steps: int, after: Schedule | None = None) -> None:
        if warmup_steps < 1:
            raise OptionError(f"WarmupLR: warmup_steps must be at least 1, but is {warmup_steps}")
        self.warmup_steps, self.after = warmup_steps, after
        if after is not None:
            optimizer.lr = after.base_lr
        super().__init__(optimizer)

    def __call__(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        if step < self.warmup_steps:
            return self.base_lr * (step + 1) / self.warmup_steps
        return self.base_lr if self.after is None else self.after(step - self.warmup_steps)
