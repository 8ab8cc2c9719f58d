"""Symbolic sizes: integer expressions over the axes of a program's inputs.

A size is a Python int or a `SizeExpr`: a polynomial with integer coefficients over atoms, where an atom is a
symbol (an input axis), a floor division or a maximum. The polynomial is kept in one canonical form, so that
equal expressions compare equal. Unification (`Bindings`) is the only source of guards.
"""

from __future__ import annotations

import ast
import math
import operator
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tapegrad.errors import GraphError


@dataclass(frozen=True, order=True)
class Symbol:
    """The size of one axis of an input, known when the program is called."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class FloorDivide:
    """``numerator // denominator``; sizes are not negative and denominators are at least 1."""

    numerator: Size
    denominator: Size

    def __str__(self) -> str:
        return f"({self.numerator}) // ({self.denominator})"


@dataclass(frozen=True)
class Maximum:
    """The larger of two sizes."""

    first: Size
    second: Size

    def __str__(self) -> str:
        return f"max({self.first}, {self.second})"


Atom = Symbol | FloorDivide | Maximum
Monomial = tuple[Atom, ...]


@dataclass(frozen=True)
class SizeExpr:
    """A polynomial over atoms: ``terms`` are (monomial, coefficient), sorted, without zero coefficients.

    Examples
    --------
    >>> n = symbol("n")
    >>> str((n + 1) * 2 - 2)
    '2*n'
    >>> (n * 3 - n * 2) == n
    True
    """

    terms: tuple[tuple[Monomial, int], ...]

    def __add__(self, other: Size) -> Size:
        return _combine(self, other, 1)

    __radd__ = __add__

    def __sub__(self, other: Size) -> Size:
        return _combine(self, other, -1)

    def __rsub__(self, other: Size) -> Size:
        return _combine(other, self, -1)

    def __mul__(self, other: Size) -> Size:
        products: dict[Monomial, int] = {}
        for left, a in _terms(self):
            for right, b in _terms(other):
                monomial = tuple(sorted(left + right, key=str))
                products[monomial] = products.get(monomial, 0) + a * b
        return _canonical(products)

    __rmul__ = __mul__

    def __neg__(self) -> Size:
        return self * -1

    def __floordiv__(self, other: Size) -> Size:
        return floor_divide(self, other)

    def __rfloordiv__(self, other: Size) -> Size:
        return floor_divide(other, self)

    def __str__(self) -> str:
        parts = []
        for monomial, coefficient in self.terms:
            atoms = "*".join(str(a) if not isinstance(a, FloorDivide) else f"({a})" for a in monomial)
            if not monomial:
                parts.append(str(coefficient))
            elif coefficient == 1:
                parts.append(atoms)
            else:
                parts.append(f"{coefficient}*{atoms}")
        return " + ".join(parts).replace("+ -", "- ")

    __repr__ = __str__


Size = int | SizeExpr
Shape = tuple[Size, ...]


def symbol(name: str) -> SizeExpr:
    """The size named ``name``."""
    return SizeExpr((((Symbol(name),), 1),))


def _terms(size: Size) -> tuple[tuple[Monomial, int], ...]:
    if isinstance(size, SizeExpr):
        return size.terms
    return (((), size),) if size else ()


def _canonical(terms: Mapping[Monomial, int]) -> Size:
    kept = tuple(sorted(((m, c) for m, c in terms.items() if c), key=lambda term: (-len(term[0]), str(term[0]))))
    if not kept:
        return 0
    if len(kept) == 1 and not kept[0][0]:
        return kept[0][1]
    return SizeExpr(kept)


def _combine(first: Size, second: Size, sign: int) -> Size:
    sums = dict(_terms(first))
    for monomial, coefficient in _terms(second):
        sums[monomial] = sums.get(monomial, 0) + sign * coefficient
    return _canonical(sums)


def floor_divide(first: Size, second: Size) -> Size:
    """``first // second``, divided out where every coefficient allows it."""
    if isinstance(first, int) and isinstance(second, int):
        return first // second
    if second == 1:
        return first
    if isinstance(second, int) and isinstance(first, SizeExpr) and all(c % second == 0 for _, c in first.terms):
        return _canonical({m: c // second for m, c in first.terms})
    quotient = _divide_monomial(first, second)
    if quotient is not None:
        return quotient
    return SizeExpr((((FloorDivide(first, second),), 1),))


def _divide_monomial(first: Size, second: Size) -> Size | None:
    """The exact quotient by a single term, where every term of ``first`` contains it."""
    if not isinstance(second, SizeExpr) or len(second.terms) != 1:
        return None
    divisor, factor = second.terms[0]
    quotient: dict[Monomial, int] = {}
    for monomial, coefficient in _terms(first):
        rest = list(monomial)
        for atom in divisor:
            if atom not in rest:
                return None
            rest.remove(atom)
        if coefficient % factor:
            return None
        quotient[tuple(rest)] = coefficient // factor
    return _canonical(quotient)


def maximum(first: Size, second: Size) -> Size:
    """The larger of two sizes."""
    if isinstance(first, int) and isinstance(second, int):
        return max(first, second)
    if first == second:
        return first
    difference = _combine(first, second, -1)
    if isinstance(difference, int):
        return first if difference > 0 else second
    return SizeExpr((((Maximum(first, second),), 1),))


def product(sizes: Shape) -> Size:
    """The product of sizes: the number of elements of a shape."""
    result: Size = 1
    for size in sizes:
        result = result * size
    return result


def is_symbol(size: Size) -> Symbol | None:
    """The symbol, when the size is nothing but one."""
    if isinstance(size, SizeExpr) and len(size.terms) == 1:
        monomial, coefficient = size.terms[0]
        if coefficient == 1 and len(monomial) == 1 and isinstance(monomial[0], Symbol):
            return monomial[0]
    return None


def symbols(size: Size) -> Iterator[Symbol]:
    """The symbols in a size, with repetitions."""
    if isinstance(size, int):
        return
    for monomial, _ in size.terms:
        for atom in monomial:
            if isinstance(atom, Symbol):
                yield atom
            elif isinstance(atom, FloorDivide):
                yield from symbols(atom.numerator)
                yield from symbols(atom.denominator)
            else:
                yield from symbols(atom.first)
                yield from symbols(atom.second)


def substitute(size: Size, values: Mapping[Symbol, Size]) -> Size:
    """The size with symbols replaced."""
    if isinstance(size, int) or not values:
        return size
    total: Size = 0
    for monomial, coefficient in size.terms:
        part: Size = coefficient
        for atom in monomial:
            if isinstance(atom, Symbol):
                part = part * values.get(atom, SizeExpr((((atom,), 1),)))
            elif isinstance(atom, FloorDivide):
                part = part * floor_divide(substitute(atom.numerator, values), substitute(atom.denominator, values))
            else:
                part = part * maximum(substitute(atom.first, values), substitute(atom.second, values))
        total = total + part
    return total


def evaluate(size: Size, values: Mapping[Symbol, int]) -> int:
    """The number a size stands for when its symbols have the given values."""
    result = substitute(size, values)
    if not isinstance(result, int):
        missing = sorted({s.name for s in symbols(result)})
        raise GraphError(f"the size {size} needs the values of {', '.join(missing)}")
    return result


_OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: floor_divide,
}


def parse_size(text: str) -> Size:
    """The size that `str` printed.

    Examples
    --------
    >>> parse_size("2*n + max(n, 3)") == 2 * symbol("n") + maximum(symbol("n"), 3)
    True
    """

    def build(tree: ast.expr) -> Size:
        match tree:
            case ast.Constant(value=int(value)):
                return value
            case ast.Name(id=name):
                return symbol(name)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -build(operand)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                result: Size = _OPERATORS[type(op)](build(left), build(right))
                return result
            case ast.Call(func=ast.Name(id="max"), args=[first, second]):
                return maximum(build(first), build(second))
        raise GraphError(f"{text!r} is not a size")

    return build(ast.parse(text, mode="eval").body)


def solve(difference: Size) -> tuple[Symbol, Size] | None:
    """A symbol, and the size it must have for ``difference`` to be zero; None where no whole size follows.

    Examples
    --------
    >>> n, m = symbol("n"), symbol("m")
    >>> solve(2 * n - 2 * m - 4)
    (Symbol(name='m'), n - 2)
    """
    for monomial, coefficient in _terms(difference):
        if len(monomial) != 1 or not isinstance(monomial[0], Symbol):
            continue
        rest = _combine(difference, SizeExpr(((monomial, coefficient),)), -1)
        if monomial[0] in set(symbols(rest)) or any(c % coefficient for _, c in _terms(rest)):
            continue
        return monomial[0], _canonical({m: -c // coefficient for m, c in _terms(rest)})
    return None


@dataclass
class Pin:
    """An axis that became static: Python had to know it."""

    size: Size
    value: int
    reason: str


@dataclass
class Bindings:
    """What a trace has learned about its symbols.

    ``hints`` are the sizes of the traced call; they decide between broadcasting and equality, and no hint enters
    the program. ``values`` maps a symbol to what it was unified with. ``equalities`` are guards between
    compound expressions. ``pins`` say which axes Python itself asked for.
    """

    hints: dict[Symbol, int] = field(default_factory=dict)
    values: dict[Symbol, Size] = field(default_factory=dict)
    equalities: list[tuple[Size, Size]] = field(default_factory=list)
    pins: list[Pin] = field(default_factory=list)

    def new_symbol(self, hint: int) -> SizeExpr:
        """A fresh symbol whose size at the trace is ``hint``."""
        name = f"s{len(self.hints)}"
        self.hints[Symbol(name)] = hint
        return symbol(name)

    def resolve(self, size: Size) -> Size:
        """The size with everything learned put in."""
        while isinstance(size, SizeExpr) and any(s in self.values for s in symbols(size)):
            size = substitute(size, self.values)
        return size

    def hint(self, size: Size) -> int:
        """The size at the traced call."""
        return evaluate(self.resolve(size), self.hints)

    def unify(self, first: Size, second: Size) -> Size | None:
        """Make two sizes equal and return the one that stands for both; None where they cannot be equal."""
        first, second = self.resolve(first), self.resolve(second)
        if first == second:
            return first
        if self.hint(first) != self.hint(second):
            return None
        for one, other in ((second, first), (first, second)):
            name = is_symbol(one)
            if name is not None and name not in set(symbols(other)):
                self.values[name] = other
                return other
        difference = self._without_common_factors(_combine(first, second, -1))
        solved = solve(difference)
        if solved is not None:
            name, value = solved
            self.values[name] = value
            return self.resolve(first)
        if (first, second) not in self.equalities:
            self.equalities.append((first, second))
        return first

    def _without_common_factors(self, difference: Size) -> Size:
        """A size that is zero where ``difference`` is: symbols common to all its terms, not zero here, divided out."""
        while isinstance(difference, SizeExpr):
            common = [
                atom
                for atom in difference.terms[0][0]
                if isinstance(atom, Symbol)
                and self.hints.get(atom)
                and all(atom in monomial for monomial, _ in difference.terms)
            ]
            if not common:
                break
            difference = floor_divide(difference, SizeExpr((((common[0],), 1),)))
        return difference

    def pin(self, size: Size, reason: str) -> int:
        """Make a size static, with the reason that ``explain`` prints."""
        resolved = self.resolve(size)
        if isinstance(resolved, int):
            return resolved
        value = self.hint(resolved)
        self.pins.append(Pin(size, value, reason))
        for name in set(symbols(resolved)):
            self.values[name] = self.hints[name]
        return value


@dataclass
class Assumptions(Bindings):
    """The guards of a finished graph: sizes in ``equalities`` are equal, and nothing more is learned."""

    def resolve(self, size: Size) -> Size:
        """The size as it is."""
        return size

    def hint(self, size: Size) -> int:
        """One number for all sizes: `unify` alone tells them apart."""
        return -1

    def unify(self, first: Size, second: Size) -> Size | None:
        """The first of two sizes that are known to be equal, or equal multiples of such."""
        if first == second:
            return first
        difference = _without_multiples(_combine(first, second, -1))
        known = any(difference == _without_multiples(_combine(one, other, -1)) for one, other in self.equalities)
        return first if known else None


def _without_multiples(difference: Size) -> Size:
    """A sum of terms less the numbers and atoms that all of them share, its first coefficient positive."""
    terms = _terms(difference)
    if len(terms) < 2:
        return difference
    shared = Counter(terms[0][0])
    for monomial, _ in terms[1:]:
        shared &= Counter(monomial)
    number = math.gcd(*[coefficient for _, coefficient in terms])
    reduced = {tuple((Counter(monomial) - shared).elements()): count // number for monomial, count in terms}
    positive = _canonical({tuple(sorted(monomial, key=str)): count for monomial, count in reduced.items()})
    return positive if _terms(positive)[0][1] > 0 else _combine(0, positive, -1)


_active = threading.local()


def active_bindings() -> Bindings | None:
    """The bindings of the trace that runs on this thread."""
    return getattr(_active, "bindings", None)


@contextmanager
def using_bindings(bindings: Bindings | None) -> Iterator[None]:
    """Within the block, unification on this thread adds to ``bindings``."""
    previous = active_bindings()
    _active.bindings = bindings
    try:
        yield
    finally:
        _active.bindings = previous


@contextmanager
def assuming(equalities: Sequence[tuple[Size, Size]]) -> Iterator[None]:
    """Within the block, the sizes that a finished graph guards are known to be equal."""
    if not equalities:
        yield
        return
    with using_bindings(Assumptions(equalities=list(equalities))):
        yield


def unify(first: Size, second: Size) -> Size | None:
    """Two sizes that must be equal: the size that stands for both, or None."""
    if first is second or first == second:
        return first
    if isinstance(first, int) and isinstance(second, int):
        return None
    bindings = active_bindings()
    return bindings.unify(first, second) if bindings is not None else None


def broadcast(first: Size, second: Size) -> Size | None:
    """Two sizes that meet in an elementwise operation, by NumPy's rule; None where they do not fit.

    A symbol whose axis is 1 at the trace and meets a larger one is pinned to 1, for that is broadcasting; one that
    meets a constant 1 stays free.
    """
    if isinstance(first, int) and isinstance(second, int):
        if first == second or second == 1:
            return first
        return second if first == 1 else None
    bindings = active_bindings()
    if bindings is not None:
        first, second = bindings.resolve(first), bindings.resolve(second)
    if first == second or second == 1:
        return first
    if first == 1:
        return second
    if bindings is None:
        return None
    hints = bindings.hint(first), bindings.hint(second)
    if hints[0] != hints[1]:
        for hint, stretched, other in ((hints[0], first, second), (hints[1], second, first)):
            if hint == 1 and is_symbol(stretched) is not None:
                bindings.unify(1, stretched)
                return other
            if hint == 1:
                bindings.pin(stretched, "a part of it has size 1 and broadcasts")
                return other
    return bindings.unify(first, second)


def is_one(size: Size) -> bool:
    """Whether the size is the constant 1 (never a symbol that happens to be 1)."""
    bindings = active_bindings()
    if bindings is not None and not isinstance(size, int):
        size = bindings.resolve(size)
    return isinstance(size, int) and size == 1
