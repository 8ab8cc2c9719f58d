"""Dynamic loss scaling, so that small gradients survive in float16."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np

from tapegrad import functions, structure, tape
from tapegrad.errors import OptionError, StateError
from tapegrad.models.optimizer import Optimizer
from tapegrad.primitives import FLOAT32, INT64
from tapegrad.recording import undecided
from tapegrad.tensor import Tensor

#: The largest power of two among float32 numbers.
_LARGEST = 2.0**127


class GradScaler:
    """Scales a loss, and the gradients back, by a factor that follows the largest that does not overflow.

    Where a gradient is infinite or NaN, the step is skipped and the factor made smaller; after many good steps it is
    made larger. Factor and count are state like an optimizer's: inside ``@jit``, ``scan`` and ``epochs`` everything
    is part of the one program, and nothing is read on the way.

    Parameters
    ----------
    init_scale : float
        The factor at first.
    growth_factor, backoff_factor : float
        What it is multiplied by after ``growth_interval`` good steps one after another, and after a bad one.
    growth_interval : int
    enabled : bool
        Where False, nothing is scaled and no step skipped.

    Raises
    ------
    OptionError
        Where a number is out of range.

    References
    ----------
    Micikevicius et al., "Mixed Precision Training", 2018, section 3.2.

    Examples
    --------
    >>> import tapegrad as tg
    >>> from tapegrad.models import SGD, GradScaler
    >>> w = tg.Tensor([1.0, 2.0], requires_grad=True)
    >>> optimizer, scaler = SGD([w], lr=0.5), GradScaler(init_scale=1024.0)
    >>> @tg.jit
    ... def step(x):
    ...     with tg.autocast("float16"):
    ...         loss = w @ x
    ...     optimizer.zero_grad()
    ...     scaler.scale(loss).backward()
    ...     scaler.step(optimizer)
    ...     scaler.update()
    ...     return loss
    >>> step(tg.Tensor([2.0, 4.0])).item(), w.tolist(), scaler.get_scale()
    (10.0, [0.0, 0.0], 1024.0)
    >>> step(tg.Tensor([1e30, 1.0])).item(), w.tolist(), scaler.get_scale()
    (nan, [0.0, 0.0], 512.0)
    """

    def __init__(
        self,
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        enabled: bool = True,
    ) -> None:
        if not (0 < init_scale <= _LARGEST and growth_factor > 1 and 0 < backoff_factor < 1 and growth_interval >= 1):
            raise OptionError(
                "GradScaler: needs 0 < init_scale <= 2**127, growth_factor > 1, 0 < backoff_factor < 1 and "
                f"growth_interval >= 1, not {init_scale}, {growth_factor}, {backoff_factor}, {growth_interval}"
            )
        self._options = (float(growth_factor), float(backoff_factor), int(growth_interval), bool(enabled))
        self._scale = undecided(np.asarray(init_scale, FLOAT32))
        self._good = undecided(np.asarray(0, INT64))
        for tensor, name in ((self._scale, "scale"), (self._good, "good_steps")):
            tensor.name = name
            tensor._make_cell()
        #: Of the step that is being made: each optimizer whose gradients are scaled back, and whether all were finite.
        self._unscaled: list[tuple[Optimizer, Tensor]] = []
        self._trace: tape.Trace | None = None

    def __repr__(self) -> str:
        growth, backoff, interval, enabled = self._options
        shown = f"scale={self.get_scale():g}, growth_factor={growth:g}, backoff_factor={backoff:g}"
        return f"GradScaler({shown}, growth_interval={interval}, enabled={enabled})"

    def get_scale(self) -> float:
        """The factor now; 1 where the scaler is not enabled."""
        return float(self._scale.item()) if self._options[-1] else 1.0

    def scale(self, loss: Tensor) -> Tensor:
        """The loss times the factor, in float32 at least; its ``backward()`` gives scaled gradients."""
        return loss * self._scale if self._options[-1] else loss

    def unscale_(self, optimizer: Optimizer) -> None:
        """Scale the gradients of an optimizer's parameters back, to clip or look at them; `step` does it otherwise.

        Raises
        ------
        OptionError
            Where they are scaled back already, or there are none.
        """
        if not self._options[-1]:
            return
        if self._finite(optimizer) is not None:
            raise OptionError("GradScaler.unscale_: the gradients of this optimizer are scaled back already")
        finite = None
        with tape.grad_mode(False):
            inverse = 1.0 / self._scale
            for parameter in optimizer.params:
                gradient = parameter.grad
                if gradient is None:
                    continue
                own = functions.all(functions.isfinite(gradient))
                finite = own if finite is None else functions.logical_and(finite, own)
                parameter.grad = gradient * inverse
        if finite is None:
            raise OptionError("GradScaler: no parameter of the optimizer has a gradient; call backward() first")
        self._unscaled.append((optimizer, finite))

    def step(self, optimizer: Optimizer) -> None:
        """Scale the gradients back, unless `unscale_` did, and make the optimizer's step if all were finite."""
        if not self._options[-1]:
            optimizer.step()
            return
        if self._finite(optimizer) is None:
            self.unscale_(optimizer)
        optimizer.step(when=self._finite(optimizer))

    def update(self) -> None:
        """Move the factor; once after the steps of all optimizers.

        Raises
        ------
        OptionError
            Where there was no step.
        """
        growth, backoff, interval, enabled = self._options
        if not enabled:
            return
        if not self._own():
            raise OptionError("GradScaler.update: call step() before")
        with tape.grad_mode(False):
            finite = self._unscaled[0][1]
            for _, other in self._unscaled[1:]:
                finite = functions.logical_and(finite, other)
            good = functions.where(finite, self._good + 1, 0)
            grows = good >= interval
            grown = functions.where(grows, functions.minimum(self._scale * growth, _LARGEST), self._scale)
            self._scale.data = functions.where(finite, grown, self._scale * backoff)
            self._good.data = functions.where(grows, 0, good)
        self._unscaled = []

    def _own(self) -> list[tuple[Optimizer, Tensor]]:
        """What was scaled back in this step; what a trace has left that came to nothing is forgotten."""
        trace = tape.local.trace
        if self._trace is not trace:
            self._trace, self._unscaled = trace, []
        return self._unscaled

    def _finite(self, optimizer: Optimizer) -> Tensor | None:
        return next((finite for known, finite in self._own() if known is optimizer), None)

    def structure_fingerprint(self) -> Hashable:
        """What a compiled step takes for granted."""
        return type(self), self._options, id(self._scale), id(self._good)

    def state_dict(self) -> dict[str, Any]:
        """The factor, the count of good steps, and the options."""
        names = ("growth_factor", "backoff_factor", "growth_interval", "enabled")
        state = {"scale": self._scale.item(), "good_steps": self._good.item()}
        return state | dict(zip(names, self._options, strict=True))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take what `state_dict` gave.

        Raises
        ------
        StateError
            Where a name is missing or unknown.
        """
        if state.keys() != self.state_dict().keys():
            raise StateError(f"GradScaler.load_state_dict: the state has {', '.join(sorted(state))}")
        self._scale.data, self._good.data = float(state["scale"]), int(state["good_steps"])
        self._options = (
            float(state["growth_factor"]),
            float(state["backoff_factor"]),
            int(state["growth_interval"]),
            bool(state["enabled"]),
        )
        structure.bump()
