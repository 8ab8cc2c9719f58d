"""Ranges along an axis whose size may only be known when the program runs: what they may become, as sizes."""

from __future__ import annotations

from typing import Any

from tapegrad.dims import as_size
from tapegrad.ir import sizes
from tapegrad.ir.sizes import Maximum, Size


def lowest(size: Size) -> float:
    """A number that a size is never below, whatever its symbols are."""
    if isinstance(size, int):
        return size
    total = 0.0
    for monomial, coefficient in size.terms:
        if coefficient < 0 and monomial:
            return float("-inf")
        product = float(coefficient)
        for atom in monomial:
            product *= max(lowest(atom.first), lowest(atom.second), 0) if isinstance(atom, Maximum) else 0
        total += product
    return total


def at_least(size: Size, bound: int) -> Size:
    """``max(size, bound)``, written so that equal sizes look equal."""
    if isinstance(size, int):
        return max(size, bound)
    if lowest(size) >= bound:
        return size
    constant = dict(size.terms).get((), 0)
    return sizes.maximum(size - constant, bound - constant) + constant


def at_most(size: Size, length: Size) -> Size:
    """The smaller of a size and the length of an axis: their sum without the larger."""
    beyond = length - size
    if lowest(beyond) >= 0:
        return size
    if isinstance(beyond, int):
        return length
    larger = at_least(length, size) if isinstance(size, int) else sizes.maximum(size, length)
    return size + length - larger


def reaches(length: Size, count: int) -> bool:
    """Whether an axis has ``count`` elements; where only the program knows, what holds at the trace, as a guard."""
    if isinstance(length, int) or lowest(length) >= count:
        return lowest(length) >= count
    bindings = sizes.active_bindings()
    if bindings is None:
        return False
    answer = bindings.hint(length) >= count
    bindings.unify(at_least(length, count), length if answer else count)
    return answer


def bound(value: Any, length: Size) -> Size:
    """Where a slice begins or ends: between 0 and the length; a negative integer counts from the end."""
    size = as_size(value)
    if isinstance(size, int) and size < 0:
        return at_least(length + size, 0)
    return at_most(at_least(size, 0), length)
