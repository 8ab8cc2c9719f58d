"""What each primitive prints as in Python: one form each, by dtype where Numba would change the dtype."""

from __future__ import annotations

from dataclasses import dataclass

from tapegrad.ir.dtypes import ALL_SUFFIXES, COMPUTED_SUFFIXES

# How tightly Python binds: an operand that binds less tightly than its place asks is put in parentheses.
CHOICE, NOT, COMPARISON, OR, AND, SUM, TERM, UNARY, ATOM = range(9)


@dataclass(frozen=True)
class Form:
    """A template of Python, how tightly it binds, and how tightly each operand must."""

    template: str
    binding: int = ATOM
    operands: tuple[int, ...] = ()


def _call(name: str) -> Form:
    return Form(name + "({})")


def _infix(symbol: str, binding: int) -> Form:
    return Form(f"{{}} {symbol} {{}}", binding, (binding, binding + 1))


def _comparison(symbol: str) -> Form:
    return Form(f"{{}} {symbol} {{}}", COMPARISON, (COMPARISON + 1, COMPARISON + 1))


#: Primitives that print alike for every dtype.
FORMS: dict[str, Form] = {
    **{
        name: _call(name)
        for name in (
            "absolute", "sign", "floor", "exp", "expm1", "log", "log1p", "sqrt", "sin", "cos", "tanh", "sigmoid", "erf",
            "maximum", "minimum", "floor_divide", "remainder",
        )
    },
    "where": _call("select"),
    "divide": _infix("/", TERM),
    "equal": _comparison("=="),
    "not_equal": _comparison("!="),
    "less": _comparison("<"),
    "less_equal": _comparison("<="),
    "logical_and": _infix("&", AND),
    "logical_or": _infix("|", OR),
    "logical_not": Form("not {}", NOT, (NOT,)),
    "stop_gradient": Form("{}", CHOICE, (CHOICE,)),
    "identity": Form("{}", CHOICE, (CHOICE,)),
}  # fmt: skip

_OPERATORS: dict[str, Form] = {
    "add": _infix("+", SUM),
    "subtract": _infix("-", SUM),
    "multiply": _infix("*", TERM),
    "negative": Form("-{}", UNARY, (UNARY,)),
}

#: Arithmetic: operators where Numba keeps the dtype, functions for int32 and uint8, which it would widen.
ARITHMETIC: dict[str, dict[str, Form]] = {
    "f32": _OPERATORS | {"power": _call("power")},
    "f64": _OPERATORS | {"power": _call("power")},
    "i64": _OPERATORS | {"power": _call("integer_power")},
    "i32": {name: _call(name) for name in _OPERATORS} | {"power": _call("integer_power")},
    "u8": {name: _call(name) for name in _OPERATORS} | {"power": _call("integer_power")},
    "b1": {"add": FORMS["logical_or"], "multiply": FORMS["logical_and"]},
}

#: How a register accumulator takes one more value, by the accumulator's operation.
ACCUMULATORS: dict[str, str] = {
    "add": "accumulate",
    "multiply": "accumulate_factor",
    "maximum": "maximum",
    "minimum": "minimum",
}

#: Every name that a printed program may call.
CALLED = frozenset(
    [form.template.split("(")[0] for form in FORMS.values() if "(" in form.template]
    + [form.template.split("(")[0] for forms in ARITHMETIC.values() for form in forms.values() if "(" in form.template]
    + list(ACCUMULATORS.values())
    + list(ALL_SUFFIXES)
    + [f"pointer_{suffix}{kind}" for suffix in ALL_SUFFIXES for kind in ("", "_at")]
    + [f"call_matmul_{suffix}" for suffix in COMPUTED_SUFFIXES if suffix != "b1"]
    + ["uniform_f32", "uniform_f64", "call_permutation", "block_word", "offset", "address", "inf", "nan"]
    + ["call_program", "call_phase"]
)
