"""How formulas are written down: plain text and LaTeX, each a row of templates."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum


class Binding(IntEnum):
    """How tightly an expression binds."""

    COMPARISON = 0
    SUM = 1
    PRODUCT = 2  #: signs, too
    POWER = 3  #: and fractions with a bar
    ATOM = 4  #: names and calls


@dataclass(frozen=True)
class Style:
    """The templates of one way to write formulas; each takes pieces that are written already."""

    name: Callable[[str], str]
    number: Callable[[str], str]
    group: Callable[[str], str]
    call: Callable[[str, str], str]
    power: Callable[[str, str], str]
    quotient: Callable[[str, str], str]
    times: Callable[[str, str], str]
    matmul: Callable[[str, str], str]
    reduce: Callable[[str, str, str], str]
    fraction_binding: Binding
    #: Functions of one argument that are no calls.
    special: Mapping[str, tuple[Callable[[str], str], Binding]]
    #: Infix operators: symbol and binding.
    infix: Mapping[str, tuple[str, Binding]]
    where: Callable[[str, str, str], str]
    negate: str
    lines: Callable[[Sequence[tuple[str, str]]], str]


# Plain text -------------------------------------------------------------------------------------------------


def _text_lines(lines: Sequence[tuple[str, str]]) -> str:
    return "\n".join(f"{label} = {value}" if label else value for label, value in lines)


TEXT = Style(
    name=lambda name: name,
    number=lambda digits: digits,
    group=lambda inner: f"({inner})",
    call=lambda function, arguments: f"{function}({arguments})",
    power=lambda base, exponent: f"{base}^{exponent}",
    quotient=lambda first, second: f"{first} / {second}",
    times=lambda first, second: f"{first} * {second}",
    matmul=lambda first, second: f"{first} @ {second}",
    reduce=lambda function, axes, inner: f"{function}({inner}{', axis=' + axes if axes else ''})",
    fraction_binding=Binding.PRODUCT,
    special={"absolute": (lambda x: f"|{x}|", Binding.ATOM)},
    infix={
        "floor_divide": ("//", Binding.PRODUCT),
        "remainder": ("%", Binding.PRODUCT),
        "equal": ("==", Binding.COMPARISON),
        "not_equal": ("!=", Binding.COMPARISON),
        "less": ("<", Binding.COMPARISON),
        "less_equal": ("<=", Binding.COMPARISON),
        "logical_and": ("and", Binding.COMPARISON),
        "logical_or": ("or", Binding.COMPARISON),
    },
    where=lambda condition, then, otherwise: f"where({condition}, {then}, {otherwise})",
    negate="not ",
    lines=_text_lines,
)


# LaTeX ------------------------------------------------------------------------------------------------------

_GREEK = frozenset(
    "alpha beta gamma delta epsilon zeta eta theta kappa lambda mu nu xi pi rho sigma tau phi chi psi omega".split()
)
_LATEX_FUNCTIONS = {name: f"\\{name}" for name in ("exp", "log", "sin", "cos", "tanh", "max", "min")} | {
    "sigmoid": r"\sigma"
}


def _latex_word(word: str) -> str:
    if word in _GREEK:
        return f"\\{word}"
    return word if len(word) == 1 or word.isdigit() else rf"\mathrm{{{word}}}"


def _latex_name(name: str) -> str:
    """``W1`` as W with an index, ``alpha`` as the letter, words upright."""
    found = re.fullmatch(r"([A-Za-z]+)_?(\d+|[A-Za-z]+)?", name)
    if found is None:
        escaped = re.sub(r"([_#%&$])", r"\\\1", name)
        return rf"\mathrm{{{escaped}}}"
    base, index = found[1], found[2]
    if index and not index.isdigit() and "_" not in name:
        base, index = name, None
    return _latex_word(base) + (f"_{{{_latex_word(index)}}}" if index else "")


def _latex_number(digits: str) -> str:
    mantissa, _, exponent = digits.partition("e")
    mantissa = mantissa.replace("inf", r"\infty").replace("nan", r"\mathrm{NaN}")
    return rf"{mantissa} \cdot 10^{{{int(exponent)}}}" if exponent else mantissa


def _latex_call(function: str, arguments: str) -> str:
    operator = function.replace("_", "-")
    name = _LATEX_FUNCTIONS.get(function, rf"\operatorname{{{operator}}}")
    return rf"{name}\left({arguments}\right)"


def _latex_times(first: str, second: str) -> str:
    together = re.fullmatch(r"-?[\d.]+", first) and not second[0].isdigit()
    return f"{first} {second}" if together else rf"{first} \cdot {second}"


def _latex_reduce(function: str, axes: str, inner: str) -> str:
    name = rf"\{function}" if function in ("sum", "prod", "max", "min") else rf"\operatorname{{{function}}}"
    return name + (rf"_{{\text{{axis }} {axes}}}" if axes else "") + rf"\left({inner}\right)"


def _latex_lines(lines: Sequence[tuple[str, str]]) -> str:
    if len(lines) == 1:
        label, value = lines[0]
        return f"{label} = {value}" if label else value
    rows = (f"{label} &= {value}" if label else f"&{value}" for label, value in lines)
    return "\\begin{aligned}\n" + " \\\\\n".join(rows) + "\n\\end{aligned}"


LATEX = Style(
    name=_latex_name,
    number=_latex_number,
    group=lambda inner: rf"\left({inner}\right)",
    call=_latex_call,
    power=lambda base, exponent: f"{base}^{{{exponent}}}",
    quotient=lambda first, second: rf"\frac{{{first}}}{{{second}}}",
    times=_latex_times,
    matmul=lambda first, second: f"{first} {second}",
    reduce=_latex_reduce,
    fraction_binding=Binding.POWER,
    special={
        "absolute": (lambda x: rf"\left|{x}\right|", Binding.ATOM),
        "sqrt": (lambda x: rf"\sqrt{{{x}}}", Binding.ATOM),
        "exp": (lambda x: f"e^{{{x}}}", Binding.POWER),
        "expm1": (lambda x: f"e^{{{x}}} - 1", Binding.SUM),
        "floor": (lambda x: rf"\left\lfloor {x} \right\rfloor", Binding.ATOM),
    },
    infix={
        "remainder": (r"\bmod", Binding.PRODUCT),
        "equal": ("=", Binding.COMPARISON),
        "not_equal": (r"\neq", Binding.COMPARISON),
        "less": ("<", Binding.COMPARISON),
        "less_equal": (r"\leq", Binding.COMPARISON),
        "logical_and": (r"\land", Binding.COMPARISON),
        "logical_or": (r"\lor", Binding.COMPARISON),
    },
    where=lambda condition, then, otherwise: (
        rf"\begin{{cases}} {then} & {condition} \\ {otherwise} & \text{{otherwise}} \end{{cases}}"
    ),
    negate=r"\lnot ",
    lines=_latex_lines,
)

#: Styles by name.
STYLES = {"text": TEXT, "latex": LATEX}
