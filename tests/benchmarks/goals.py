"""Goals and what was reached: the rows of the benchmark's table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Goal:
    """One goal and the figure that stands against it.

    Attributes
    ----------
    work : str
        What runs.
    measure : str
        What the figure is, with its unit.
    value : float or None
        None where it could not be taken, for example because a peer is not installed.
    sense : {"at most", "at least"}
    limit : float
    """

    work: str
    measure: str
    value: float | None
    sense: Literal["at most", "at least"]
    limit: float

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None without a figure."""
        if self.value is None:
            return None
        return self.value <= self.limit if self.sense == "at most" else self.value >= self.limit

    def to_json(self) -> dict[str, Any]:
        """The row as JSON values."""
        return {**asdict(self), "met": self.met}


def number(value: float | None) -> str:
    """Three significant digits, whole numbers from a hundred on."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def goal_table(goals: Sequence[Goal]) -> str:
    """The goals as a Markdown table, a row a goal; what a work's rows share is said once."""
    lines = ["| work | measure | figure | goal | met |", "|---|---|---:|---:|---|"]
    sign = {"at most": "<=", "at least": ">="}
    words = {True: "yes", False: "**no**", None: "not measured"}
    before = None
    for goal in goals:
        work = "" if goal.work == before else goal.work
        before = goal.work
        limit = f"{sign[goal.sense]} {number(goal.limit)}"
        lines.append(f"| {work} | {goal.measure} | {number(goal.value)} | {limit} | {words[goal.met]} |")
    return "\n".join(lines)
