"""What each primitive prints as in CUDA C: one form each, by dtype where C would change it."""

from __future__ import annotations

INDENT = "  "

# How tightly C binds: an operand that binds less tightly than its place asks is put in parentheses.
CHOICE, OR, AND, EQUALITY, COMPARISON, SUM, TERM, UNARY, ATOM = range(9)

#: A template, how tightly it binds, and how tightly each operand must.
Form = tuple[str, int, tuple[int, ...]]


def _call(name: str, operands: int = 1) -> Form:
    return f"{name}({', '.join(['{}'] * operands)})", ATOM, (CHOICE,) * operands


def _infix(symbol: str, binding: int) -> Form:
    return f"{{}} {symbol} {{}}", binding, (binding, binding + 1)


_COMMON: dict[str, Form] = {
    "absolute": _call("absolute"),
    "sign": _call("sign"),
    "maximum": _call("maximum", 2),
    "minimum": _call("minimum", 2),
    "floor_divide": _call("floor_divide", 2),
    "remainder": _call("floor_remainder", 2),
    "where": ("{} ? {} : {}", CHOICE, (OR, OR, CHOICE)),
    "stop_gradient": ("{}", CHOICE, (CHOICE,)),
    "identity": ("{}", CHOICE, (CHOICE,)),
}

#: Primitives whose result is bool, whatever they compare.
_BOOL: dict[str, Form] = _COMMON | {
    "equal": _infix("==", EQUALITY),
    "not_equal": _infix("!=", EQUALITY),
    "less": _infix("<", COMPARISON),
    "less_equal": _infix("<=", COMPARISON),
    "logical_and": _infix("&&", AND),
    "logical_or": _infix("||", OR),
    "logical_not": ("!{}", UNARY, (UNARY,)),
    "add": _infix("||", OR),
    "multiply": _infix("&&", AND),
}

_OPERATORS: dict[str, Form] = {
    "add": _infix("+", SUM),
    "subtract": _infix("-", SUM),
    "multiply": _infix("*", TERM),
    "divide": _infix("/", TERM),
    "negative": ("-{}", UNARY, (ATOM,)),
}

_ELEMENTARY = ("floor", "exp", "expm1", "log", "log1p", "sqrt", "sin", "cos", "tanh", "erf")


def _floats(suffix: str) -> dict[str, Form]:
    """The forms of a floating dtype, whose functions carry a suffix."""
    functions = {name: _call(name + suffix) for name in _ELEMENTARY}
    relu: Form = (f"{{0}} <= 0.0{suffix} ? 0.0{suffix} : {{0}}", CHOICE, (OR,))
    own: dict[str, Form] = {"power": _call("pow" + suffix, 2), "sigmoid": _call("sigmoid"), "relu": relu}
    return _COMMON | _OPERATORS | functions | own


_INTEGERS: dict[str, Form] = _COMMON | {
    "add": _call("wrapping_add", 2),
    "subtract": _call("wrapping_subtract", 2),
    "multiply": _call("wrapping_multiply", 2),
    "negative": _call("wrapping_negative"),
    "power": _call("integer_power", 2),
    "relu": ("{0} <= 0 ? 0 : {0}", CHOICE, (ATOM,)),
    "floor": ("{}", CHOICE, (CHOICE,)),
}

#: The forms of each dtype, by the suffix that generated names carry.
FORMS: dict[str, dict[str, Form]] = {
    "f32": _floats("f"),
    "f64": _floats(""),
    "i32": _INTEGERS,
    "i64": _INTEGERS,
    "u8": _INTEGERS,
    "b1": _BOOL,
}

#: Arithmetic on indices, which never wraps.
INDEX_FORMS: dict[str, Form] = {
    **{name: _OPERATORS[name] for name in ("add", "subtract", "multiply", "negative")},
    "floor_divide": _infix("/", TERM),
    "remainder": _infix("%", TERM),
    "maximum": _call("maximum<index>", 2),
    "minimum": _call("minimum<index>", 2),
    "where": _COMMON["where"],
}

#: The operation of an accumulator, as a class of the prelude.
OPERATIONS = {"add": "Add", "multiply": "Multiply", "maximum": "Maximum", "minimum": "Minimum"}
