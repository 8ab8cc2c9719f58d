"""Elementary functions that LLVM vectorises in plain loops.

Each function is written once over an arithmetic (see `arithmetic`), for float32 and float64, without branches, with few
operations and short chains of them; compiled, it is one inlined LLVM function of the program's module. Only `power` of
float64 and sines of huge angles call libm. Errors stay within 2 units in the last place in float32 and 4 in float64,
with NumPy's values at 0, infinities, NaN and subnormal numbers.

The polynomials are minimax approximations, found by the Remez exchange in 50-digit arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.errors import NumbaTypeError

from tapegrad.kernels.cpu.arithmetic import Emitted, EmittedArithmetic, Format, NumpyArithmetic
from tapegrad.kernels.cpu.intrinsics import LLVM_TYPES, is_float, is_signed, require_float, require_same, with_twin

# (exp(r) - 1 - r) / r^2 for |r| <= ln(2) / 2
_EXP = {
    "f32": (0.5, 0.16666518, 0.041666206, 0.008368953, 0.0013950602),
    "f64": (
        0.5000000000000013, 0.166666666666667, 0.04166666666651441, 0.008333333333306985, 0.0013888888947308517,
        0.00019841269917880743, 2.4801489612039468e-05, 2.7557215849627225e-06, 2.763140696794724e-07,
        2.5118004533445424e-08,
    ),
}  # fmt: skip
# The same with an error that does not count where 1 is not added.
_EXP_TAIL = {
    "f32": (0.5, 0.166666672, 0.0416662358, 0.00833325833, 0.00139483786, 0.000199214774),
    "f64": _EXP["f64"],
}
# float32: (log(1 + f) - f + f^2 / 2) / f^3 for sqrt(1/2) <= 1 + f <= sqrt(2)
_LOG_SINGLE = (
    0.3333333, -0.2500082, 0.20001228, -0.1662336, 0.14201744, -0.13160151, 0.12761645, -0.07634649,
)  # fmt: skip
# float64: (log((1 + s) / (1 - s)) - 2 s) / s^3 in s^2 <= 0.0295
_LOG_DOUBLE = (
    0.666666666666667, 0.3999999999989789, 0.2857142862665141, 0.22222211031749325, 0.18182896207631685,
    0.15331497764506818, 0.1461909699201228,
)  # fmt: skip
# float32: (tanh(x) - x) / x^3 in x^2 <= 0.3906
_TANH = (-0.333333313, 0.133332118, -0.0539474711, 0.0217042174, -0.00818540808, 0.00214979565)
# -log(erfc(x)) / x^2 - slope / x for 0 <= x up to where erf is 1; the slope at 0 is 2 / sqrt(pi), in two parts
_ERF = {
    "f32": (
        0.6366195, 0.1027768, -0.019149596, -0.00016635757, 0.0016726515, -0.00063576765, 0.00011842881, -9.341079e-06,
    ),
    "f64": (
        0.6366197723676097, 0.10277260329983268, -0.01912844695445051, -0.00020919535652193954, 0.0016962115511850106,
        -0.0005901520483465357, 2.597355522246949e-05, 6.424386862755273e-05, -2.9237488643813676e-05,
        2.674087795427792e-06, 3.6975854197095096e-06, -2.5428613454387585e-06, 9.291709426980892e-07,
        -2.136828310868236e-07, 2.4667501208512174e-08, 2.5552653090840815e-09, -1.8632784983533425e-09,
        4.414235371380397e-10, -6.30942975911532e-11, 5.720978771911623e-12, -3.0535490787316213e-13,
        7.350965104114506e-15,
    ),
}  # fmt: skip
_ERF_SLOPE = {
    "f32": (1.128379225730896, -5.863538342219759e-08),
    "f64": (1.1283791670955126, 1.533545961316588e-17),
}
_ERF_END = {"f32": 3.92, "f64": 5.92}
# (sin(r) - r) / r^3 and (cos(r) - 1 + r^2 / 2) / r^4 in r^2 <= (pi / 4)^2
_SIN = {
    "f32": (-0.16666655, 0.008332173, -0.00019516655),
    "f64": (
        -0.16666666666666632, 0.008333333333322316, -0.0001984126982972523, 2.7557313662068478e-06,
        -2.5050753266718596e-08, 1.5896505100539e-10,
    ),
}  # fmt: skip
_COS = {
    "f32": (0.041666646, -0.0013887362, 2.4437746e-05),
    "f64": (
        0.0416666666666666, -0.001388888888887399, 2.480158728939501e-05, -2.7557314326052583e-07,
        2.0875719561408245e-09, -1.1359448808573787e-11,
    ),
}  # fmt: skip

# ln 2 in two parts: the first has so few bits that its product with any exponent is exact.
_LN2 = {"f32": (0.693145751953125, 1.42860682031e-06), "f64": (0.6931471803691238, 1.9082149292705877e-10)}
# pi / 2 in three parts. In float64 the first two have 33 bits, so that their products with a count of turns are exact;
# in float32 all have 24, for machines whose multiply-add rounds once.
_HALF_PI = {
    "f32": (1.5707963705062866, -4.371138828673793e-08, -1.7151245100058819e-15),
    "f64": (1.5707963267341256, 6.077100506303966e-11, 2.0222662487959506e-21),
}
_LARGE_ANGLE = {"f32": 1e5, "f64": 1e6}

# Where exp reaches infinity and 0, and where expm1 reaches -1 and tanh 1.
_EXP_RANGE = {"f32": (-104.5, 89.0), "f64": (-746.0, 710.0)}
_TANH_END = {"f32": 10.0, "f64": 20.0}


def _polynomial(x: Any, coefficients: tuple[float, ...]) -> Any:
    """Estrin's scheme, lowest coefficient first.

    A vector loop waits for its longest chain of dependent operations: this one is as long as the logarithm of the
    degree, where Horner's rule has one as long as the degree.
    """
    terms: list[Any] = list(coefficients)
    while len(terms) > 3:
        paired = [low + x * high for low, high in zip(terms[::2], terms[1::2], strict=False)]
        terms = paired + terms[len(paired) * 2 :]
        x = x * x
    total = terms.pop()
    while terms:
        total = terms.pop() + x * total
    return total


def _near_zero(m: Any, x: Any, turn: float) -> tuple[Any, Any, Any, Any]:
    """(first, second, r, bits) with x = first + second + n ln 2, r about first + second and |r| <= ln(2) / 2.

    The low bits are n + turn.
    """
    shift = m.format.rounding_shift + turn
    shifted = x * (1 / math.log(2)) + shift
    n = shifted - shift
    high, low = _LN2[m.format.suffix]
    first = x - n * high
    second = n * -low
    return first, second, first - n * low, m.bits(shifted)


def _exp_tail(m: Any, second: Any, r: Any, table: dict[str, tuple[float, ...]] = _EXP_TAIL) -> Any:
    """exp(first + second) - 1 - first."""
    return r * r * _polynomial(r, table[m.format.suffix]) + second


def _halves(m: Any, bits: Any) -> tuple[Any, Any]:
    """Two powers of two whose product is 2^n, for low bits n + 2 bias; one alone could be too large or too small."""
    form: Format = m.format
    exponent = (1 << form.exponent_bits) - 1 << form.mantissa_bits
    first = (bits << (form.mantissa_bits - 1)) & exponent
    return m.from_bits(first), m.from_bits((bits << form.mantissa_bits) - first)


def _reciprocal(m: Any, power: Any) -> Any:
    """1 / power for a power of two."""
    one = m.bits(m.constant(1.0))
    return m.from_bits(one + one - m.bits(power))


def _clamped(m: Any, x: Any, low: float, high: float) -> Any:
    x = m.select(x < low, low, x)
    return m.select(x > high, high, x)


def _exp(m: Any, x: Any) -> Any:
    x = _clamped(m, x, *_EXP_RANGE[m.format.suffix])
    _, _, r, bits = _near_zero(m, x, 2 * m.format.bias)
    first, second = _halves(m, bits)
    return (r * r * _polynomial(r, _EXP[m.format.suffix]) + r + 1.0) * first * second


def _expm1(m: Any, x: Any) -> Any:
    """2^n (exp(r) - 1) + (2^n - 1), with 2^n in two factors so that neither overflows."""
    x = _clamped(m, x, *_EXP_RANGE[m.format.suffix])
    first, rest, r, bits = _near_zero(m, x, 2 * m.format.bias)
    scale, second = _halves(m, bits)
    nearly = scale * first + (scale - _reciprocal(m, second))
    return (scale * _exp_tail(m, rest, r) + nearly) * second


def _expm1_within(m: Any, x: Any) -> Any:
    """expm1 where neither the result nor 2^n leaves the normal numbers."""
    first, second, r, bits = _near_zero(m, x, m.format.bias)
    scale = m.from_bits(bits << m.format.mantissa_bits)
    return scale * _exp_tail(m, second, r) + (scale * first + (scale - 1.0))


def _split_log(m: Any, x: Any, places: Any) -> tuple[Any, Any]:
    """(k, f) with x = 2^(k + places) (1 + f) and 1 + f between sqrt(1/2) and sqrt(2), for normal x."""
    form: Format = m.format
    one = form.bias << form.mantissa_bits
    half_root = int(np.array(math.sqrt(0.5), f"f{form.width // 8}").view(f"u{form.width // 8}"))
    shifted = m.bits(x) + (one - half_root)
    # The exponent becomes the low bits of a large number.
    large = 2.0**form.mantissa_bits
    k = m.from_bits((shifted >> form.mantissa_bits) | m.bits(m.constant(large))) - (places + (large + form.bias))
    return k, m.from_bits((shifted & ((1 << form.mantissa_bits) - 1)) + half_root) - 1.0


def _assemble_log(m: Any, k: Any, f: Any, correction: Any) -> Any:
    """k ln 2 + log(1 + f) + correction."""
    ln2_high, ln2_low = _LN2[m.format.suffix]
    square = f * f
    rest = k * ln2_low + correction
    if m.format.suffix == "f32":
        tail = square * f * _polynomial(f, _LOG_SINGLE) + rest
        return k * ln2_high + ((tail - square * 0.5) + f)
    s = f / (f + 2.0)
    z = s * s
    half_square = square * 0.5
    tail = s * (z * _polynomial(z, _LOG_DOUBLE) + half_square) + rest
    return k * ln2_high - ((half_square - tail) - f)


def _at_log_borders(m: Any, x: Any, argument: Any, usual: Any) -> Any:
    """The logarithm of infinity and NaN is itself, of a negative number NaN, of 0 -infinity."""
    usual = m.select(x < math.inf, usual, x)
    usual = m.select(m.is_negative(argument), math.nan, usual)
    return m.select(argument == 0.0, -math.inf, usual)


def _log(m: Any, x: Any) -> Any:
    form: Format = m.format
    subnormal = x < form.smallest_normal
    places = form.mantissa_bits + 1
    larger = m.select(subnormal, x * 2.0**places, x)
    k, f = _split_log(m, larger, m.select(subnormal, m.constant(float(places)), 0.0))
    return _at_log_borders(m, x, x, _assemble_log(m, k, f, 0.0))


def _log1p(m: Any, x: Any) -> Any:
    total = x + 1.0
    rounded = total - 1.0
    error = (x - rounded) + (1.0 - (total - rounded))
    k, f = _split_log(m, total, 0.0)
    near_one = k == 0.0
    f = m.select(near_one, x, f)
    correction = m.select(near_one, 0.0, error / total)
    return _at_log_borders(m, x, total, _assemble_log(m, k, f, correction))


def _sqrt(m: Any, x: Any) -> Any:
    return m.sqrt(x)


def _tanh(m: Any, x: Any) -> Any:
    """e / (e + 2) with e = expm1(2 |x|); in float32, whose limit is 2 units, that is too far off for small x."""
    end = _TANH_END[m.format.suffix]
    size = m.absolute(x)
    size = m.select(size > end, end, size)
    above = _expm1_within(m, size + size)
    if m.format.suffix == "f64":
        return m.copysign(above / (above + 2.0), x)
    z = x * x
    small = x * z * _polynomial(z, _TANH) + x
    large = 1.0 - 2.0 / (above + 2.0)
    return m.select(size < 0.625, small, m.copysign(large, x))


def _sigmoid(m: Any, x: Any) -> Any:
    """1 / (1 + exp(-x)), with the power of two in exp(-x) in two factors, so that small results lose no bits."""
    low, high = _EXP_RANGE[m.format.suffix]
    near, small, r, bits = _near_zero(m, -_clamped(m, x, low, -low), 2 * m.format.bias)
    above_one = _exp_tail(m, small, r, _EXP) + near
    scale, second = _halves(m, bits)
    rest = _reciprocal(m, second)
    # (exp(-x) + 1) / second is scale * above_one + scale + rest, added so that only one rounding counts.
    is_large = scale > rest
    first, last = m.select(is_large, rest, m.constant(0.0)), m.select(is_large, scale, scale + rest)
    return 1.0 / ((scale * above_one + first) + last) * rest


def _erf(m: Any, x: Any) -> Any:
    """-expm1(log(erfc |x|)): that logarithm is x times a smooth function."""
    suffix = m.format.suffix
    end = _ERF_END[suffix]
    size = m.absolute(x)
    size = m.select(size > end, end, size)
    slope, slope_rest = _ERF_SLOPE[suffix]
    exponent = (size * _polynomial(size, _ERF[suffix]) + slope_rest) * size + size * slope
    return m.copysign(_expm1_within(m, -exponent), x)


def _circular(m: Any, x: Any, quarter_turns: int) -> Any:
    """sin(x + quarter_turns * pi / 2) for angles that are not large."""
    form: Format = m.format
    shifted = x * (2 / math.pi) + form.rounding_shift
    n = shifted - form.rounding_shift
    first, second, third = _HALF_PI[form.suffix]
    r = ((x - n * first) - n * second) - n * third
    z = r * r
    sine = r * z * _polynomial(z, _SIN[form.suffix]) + r
    cosine = (1.0 - z * 0.5) + z * z * _polynomial(z, _COS[form.suffix])
    quadrant = m.bits(shifted) + quarter_turns
    y = m.select(m.is_negative(m.from_bits(quadrant << (form.width - 1))), cosine, sine)
    return m.from_bits(m.bits(y) ^ ((quadrant << (form.width - 2)) & (1 << (form.width - 1))))


def _turned(name: str, quarter_turns: int) -> Callable[[Any, Any], Any]:
    """sin or cos; a large angle goes to libm.

    float32 without a multiply-add that rounds once is computed in double.
    """

    def function(m: Any, x: Any) -> Any:
        if m.format.suffix == "f64" or m.fused:
            usual = _circular(m, x, quarter_turns)
        else:
            usual = m.from_double(_circular(m.in_double(), m.to_double(x), quarter_turns))
        return m.unless(m.absolute(x) > _LARGE_ANGLE[m.format.suffix], usual, name, x)

    return function


_sin, _cos = _turned("sin", 0), _turned("cos", 1)


def _power(m: Any, x: Any, y: Any) -> Any:
    """float64: libm. float32: exp(y log |x|) in double, whose error of 2^-46 at worst vanishes in the rounding."""
    if m.format.suffix == "f64":
        return m.libm("pow", x, y)
    d = m.in_double()
    size = m.absolute(x)
    value = m.from_double(_exp(d, m.to_double(y) * _log(d, m.to_double(size))))
    whole = m.floor(y) == y
    half = y * 0.5
    odd = whole & (m.floor(half) != half)
    value = m.select(size == 1.0, 1.0, value)
    negative = (m.bits(x) >> (m.format.width - 1)) != 0
    value = m.select(negative & odd, -value, value)
    value = m.select((x < 0.0) & (x > -math.inf) & (m.floor(y) != y), math.nan, value)
    return m.select((x == 1.0) | (y == 0.0), 1.0, value)


# --- as intrinsics --------------------------------------------------------------------------------------------------


def _floating(function: Callable[..., Any], name: str, arity: int = 1) -> Callable[..., Any]:
    """An intrinsic over float32 or float64: one inlined function of the module, called at each use."""

    def twin(*arguments: Any) -> Any:
        suffix = "f32" if isinstance(arguments[0], np.float32) else "f64"
        with np.errstate(all="ignore"):
            return function(NumpyArithmetic(suffix), *arguments)

    def build(module: ir.Module, symbol: str, suffix: str) -> ir.Function:
        kind = LLVM_TYPES[suffix]
        made = ir.Function(module, ir.FunctionType(kind, [kind] * arity), symbol)
        made.linkage = "internal"
        made.attributes.add("alwaysinline")
        made.attributes.add("nounwind")
        builder = ir.IRBuilder(made.append_basic_block("entry"))
        arguments = [Emitted(builder, argument) for argument in made.args]
        builder.ret(function(EmittedArithmetic(builder, suffix), *arguments).value)
        return made

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, arguments: tuple[Any, ...]) -> Any:
        suffix = "f32" if sig.return_type == types.float32 else "f64"
        symbol = f"tapegrad.{name}.{suffix}"
        return builder.call(builder.module.globals.get(symbol) or build(builder.module, symbol, suffix), arguments)

    def unary(typing_context: Any, x: Any) -> Any:
        kind = require_float(name, x)
        return kind(kind), emit

    def binary(typing_context: Any, x: Any, y: Any) -> Any:
        kind = require_float(name, require_same(name, x, y))
        return kind(kind, kind), emit

    definitions: dict[int, Callable[..., Any]] = {1: unary, 2: binary}
    return with_twin(twin)(definitions[arity])


exp, expm1 = _floating(_exp, "exp"), _floating(_expm1, "expm1")
log, log1p = _floating(_log, "log"), _floating(_log1p, "log1p")
sqrt = _floating(_sqrt, "sqrt")
sin, cos = _floating(_sin, "sin"), _floating(_cos, "cos")
tanh, sigmoid, erf = _floating(_tanh, "tanh"), _floating(_sigmoid, "sigmoid"), _floating(_erf, "erf")
power = _floating(_power, "power", arity=2)


def _of_any_number(name: str, twin: Callable[[Any], Any], emission: Callable[..., Any]) -> Callable[..., Any]:
    """An intrinsic over floats, integers and bools that keeps the dtype."""

    def definition(typing_context: Any, x: Any) -> Any:
        if not isinstance(x, types.Number | types.Boolean):
            raise NumbaTypeError(f"{name} takes a number, not {x}")
        kind = types.unliteral(x)

        def emit(context: Any, builder: ir.IRBuilder, sig: Any, arguments: tuple[Any, ...]) -> Any:
            return emission(builder, kind, arguments[0])

        return kind(kind), emit

    return with_twin(twin)(definition)


def _emit_floor(builder: ir.IRBuilder, kind: Any, x: Any) -> Any:
    if not is_float(kind):
        return x
    return EmittedArithmetic(builder, "f32" if kind == types.float32 else "f64").floor(Emitted(builder, x)).value


def _emit_absolute(builder: ir.IRBuilder, kind: Any, x: Any) -> Any:
    if is_float(kind):
        suffix = "f32" if kind == types.float32 else "f64"
        return EmittedArithmetic(builder, suffix).absolute(Emitted(builder, x)).value
    if not is_signed(kind):
        return x
    return builder.select(builder.icmp_signed("<", x, ir.Constant(x.type, 0)), builder.neg(x), x)


def _emit_sign(builder: ir.IRBuilder, kind: Any, x: Any) -> Any:
    zero, one = ir.Constant(x.type, 0), ir.Constant(x.type, 1)
    if is_float(kind):
        positive = builder.fcmp_ordered(">", x, zero, flags=("nsz",))
        negative = builder.fcmp_ordered("<", x, zero, flags=("nsz",))
    elif is_signed(kind):
        positive, negative = builder.icmp_signed(">", x, zero), builder.icmp_signed("<", x, zero)
    else:
        return builder.select(builder.icmp_unsigned("!=", x, zero), one, zero)
    return builder.select(positive, one, builder.select(negative, ir.Constant(x.type, -1), x))


def _python_floor(x: Any) -> Any:
    return np.floor(x) if isinstance(x, np.floating) else x


def _python_absolute(x: Any) -> Any:
    return np.absolute(x)


def _python_sign(x: Any) -> Any:
    return x if isinstance(x, np.bool_) else np.sign(x)


floor = _of_any_number("floor", _python_floor, _emit_floor)
absolute = _of_any_number("absolute", _python_absolute, _emit_absolute)
sign = _of_any_number("sign", _python_sign, _emit_sign)

#: Every function of this module by the name that generated source uses.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "exp": exp,
    "expm1": expm1,
    "log": log,
    "log1p": log1p,
    "sqrt": sqrt,
    "sin": sin,
    "cos": cos,
    "tanh": tanh,
    "sigmoid": sigmoid,
    "erf": erf,
    "power": power,
    "floor": floor,
    "absolute": absolute,
    "sign": sign,
}
