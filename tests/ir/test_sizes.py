"""Symbolic sizes: one form for each polynomial, exact division, and what a trace may learn."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapegrad.errors import GraphError
from tapegrad.ir import sizes
from tapegrad.ir.sizes import Bindings, Size, Symbol, evaluate, maximum, parse_size, symbol

n, m = symbol("n"), symbol("m")


def test_equal_polynomials_are_equal_however_they_were_made() -> None:
    assert (n + 1) * 2 - 2 == 2 * n
    assert n * m == m * n
    assert (n + m) * (n - m) == n * n - m * m
    assert n - n == 0
    assert 3 - (3 - n) == n
    assert -n + n == 0
    assert hash(n + m) == hash(m + n)


def test_a_polynomial_without_symbols_is_an_int() -> None:
    assert isinstance(n * 0 + 5, int)
    assert isinstance((n + 2) - n, int)


def test_division_that_leaves_no_rest_is_carried_out() -> None:
    assert (6 * n + 4) // 2 == 3 * n + 2
    assert (n * m * 3) // m == 3 * n
    assert (n * m + n) // n == m + 1
    assert n // 1 == n
    assert 12 // (n // n) == 12


def test_division_that_leaves_a_rest_is_kept() -> None:
    half = (n + 1) // 2
    assert str(half) == "((n + 1) // (2))"
    assert evaluate(half, {Symbol("n"): 7}) == 4
    assert evaluate(10 // n, {Symbol("n"): 3}) == 3


def test_the_larger_of_two_sizes() -> None:
    assert maximum(n, n) == n
    assert maximum(n + 3, n) == n + 3
    assert maximum(n, n + 3) == n + 3
    assert maximum(2, 5) == 5
    assert evaluate(maximum(n, m), {Symbol("n"): 2, Symbol("m"): 5}) == 5


def test_the_product_of_a_shape() -> None:
    assert sizes.product(()) == 1
    assert sizes.product((n, 3, m)) == 3 * n * m


def test_only_a_bare_symbol_is_one() -> None:
    assert sizes.is_symbol(n) == Symbol("n")
    for size in (2 * n, n + 1, n * m, 3, n // 2):
        assert sizes.is_symbol(size) is None


def test_substitution_goes_into_every_atom() -> None:
    size = (n + 1) // 2 + maximum(n, m) * m
    assert sizes.substitute(size, {Symbol("n"): 5, Symbol("m"): 4}) == 3 + 20
    assert sizes.substitute(n * n, {Symbol("n"): m + 1}) == m * m + 2 * m + 1


def test_an_unknown_symbol_is_named() -> None:
    with pytest.raises(GraphError, match="needs the values of m"):
        evaluate(n + m, {Symbol("n"): 1})


@pytest.mark.parametrize("text", ["n.shape", "n ** 2", "'n'", "f(n, 2)", "1.5"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(GraphError, match="is not a size"):
        parse_size(text)


_OPERATIONS: list[Callable[[Size, Size], Size]] = [
    lambda a, b: a + b,
    lambda a, b: a - b,
    lambda a, b: a * b,
    lambda a, b: sizes.floor_divide(a * a, b * b + 1),
    maximum,
]


@st.composite
def _expressions(draw: st.DrawFn) -> tuple[Size, int]:
    """A size, and the value it must have at n = 7, m = 3."""
    pairs: list[tuple[Size, int]] = [(n, 7), (m, 3), (2, 2), (-1, -1)]
    for _ in range(draw(st.integers(0, 6))):
        operation = draw(st.sampled_from(_OPERATIONS))
        (a, x), (b, y) = draw(st.sampled_from(pairs)), draw(st.sampled_from(pairs))
        pairs.append((operation(a, b), int(evaluate(operation(x, y), {}))))
    return pairs[-1]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(_expressions())
def test_a_size_has_its_value_and_is_printed_and_parsed_back(pair: tuple[Size, int]) -> None:
    size, value = pair
    assert evaluate(size, {Symbol("n"): 7, Symbol("m"): 3}) == value
    assert parse_size(str(size)) == size


# What a trace learns ----------------------------------------------------------------------------------------


def _traced(*hints: int) -> tuple[Bindings, list[sizes.SizeExpr]]:
    bindings = Bindings()
    return bindings, [bindings.new_symbol(hint) for hint in hints]


def test_two_symbols_become_one() -> None:
    bindings, (a, b) = _traced(4, 4)
    with sizes.using_bindings(bindings):
        joined = sizes.unify(a, b)
        assert joined is not None
        assert bindings.resolve(a) == bindings.resolve(b) == joined
    assert bindings.equalities == []


def test_equality_by_coincidence_is_not_assumed() -> None:
    bindings, (a, b) = _traced(4, 4)
    assert a != b
    with sizes.using_bindings(bindings):
        assert sizes.broadcast(a, 1) == a
    assert bindings.values == {}


def test_a_symbol_that_meets_a_constant_is_that_constant() -> None:
    bindings, (a, _) = _traced(4, 5)
    with sizes.using_bindings(bindings):
        assert sizes.unify(a, 4) == 4
        assert bindings.resolve(a + 1) == 5
        assert sizes.unify(a, 5) is None


def test_sizes_that_differ_at_the_trace_do_not_unify() -> None:
    bindings, (a, b) = _traced(4, 5)
    with sizes.using_bindings(bindings):
        assert sizes.unify(a, b) is None
        assert sizes.unify(a, 2 * b) is None


def test_what_no_symbol_solves_becomes_a_guard() -> None:
    bindings, (a, b) = _traced(4, 4)
    with sizes.using_bindings(bindings):
        assert sizes.unify(a // 3, b // 3) is not None
        assert sizes.unify(a // 3, b // 3) is not None
    assert bindings.equalities == [(a // 3, b // 3)]


def test_an_axis_of_one_that_meets_a_longer_one_is_pinned() -> None:
    bindings, (a, b) = _traced(1, 5)
    with sizes.using_bindings(bindings):
        assert sizes.broadcast(a, b) == b
        assert sizes.is_one(a)
        assert not sizes.is_one(b)


def test_a_pin_makes_an_axis_static_and_says_why() -> None:
    bindings, (a,) = _traced(6)
    assert bindings.pin(a * 2, "range()") == 12
    assert bindings.resolve(a) == 6
    assert [(pin.value, pin.reason) for pin in bindings.pins] == [(12, "range()")]
    assert bindings.pin(a, "len()") == 6
    assert len(bindings.pins) == 1


def test_without_a_trace_only_equal_sizes_are_equal() -> None:
    assert sizes.unify(n, n) == n
    assert sizes.unify(n, m) is None
    assert sizes.unify(2, 3) is None
    assert sizes.broadcast(n, m) is None
    assert sizes.broadcast(1, n) == n
    assert sizes.broadcast(2, 3) is None


def test_the_guards_of_a_finished_graph_are_known_and_nothing_else() -> None:
    with sizes.assuming([(2 * n, m)]):
        assert sizes.unify(2 * n, m) == 2 * n
        assert sizes.unify(m, 2 * n) == m
        assert sizes.broadcast(m, 2 * n) == m
        assert sizes.unify(n, m) is None
        assert sizes.broadcast(n, 3) is None
        assert sizes.broadcast(n, 1) == n
    assert sizes.unify(2 * n, m) is None


def test_bindings_are_of_the_block_that_uses_them() -> None:
    bindings = Bindings()
    with sizes.using_bindings(bindings):
        with sizes.using_bindings(None):
            assert sizes.active_bindings() is None
        assert sizes.active_bindings() is bindings
    assert sizes.active_bindings() is None


def test_multiples_of_what_is_known_to_be_equal_are_equal() -> None:
    k, p = symbol("k"), symbol("p")
    with sizes.assuming([(n * m, k * p)]):
        assert sizes.unify(4 * n * m, 4 * k * p) == 4 * n * m
        assert sizes.unify(k * p * n, n * n * m) == k * p * n
        assert sizes.unify(4 * n * m, 2 * k * p) is None
        assert sizes.unify(n * m + 1, k * p) is None
        assert sizes.unify(n, k) is None and sizes.unify(n, 0) is None
    with sizes.assuming([(n, 0)]):
        assert sizes.unify(m, 0) is None
