"""Elementary functions that LLVM vectorises in plain loops.

Each function is written once over an arithmetic (see `arithmetic`), for float32 and float64, without branches;
compiled, it is one inlined LLVM function of the program's module. Only `power` of float64 and sines of huge angles call
libm. Errors stay within 2 units in the last place in float32 and 4 in float64, with NumPy's values at 0, infinities,
NaN and subnormal numbers.

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

# (exp(r) - 1 - r) / r^2 for |r| <= 0.354
_EXP = {
    "f32": (0.5, 0.166666672, 0.0416662358, 0.00833325833, 0.00139483786, 0.000199214774),
    "f64": (
        0.5, 0.16666666666666688, 0.041666666666666734, 0.008333333333313906, 0.0013888888888853453,
        0.000198412699040607, 2.480158738246547e-05, 2.755722726393689e-06, 2.755722657404781e-07,
        2.511465931695372e-08, 2.092888571754755e-09,
    ),
}  # fmt: skip
# (log((1 + s) / (1 - s)) - 2 s) / s^3 in s^2 <= 0.0295
_LOG = {
    "f32": (0.666666687, 0.400001228, 0.285506994, 0.233334184),
    "f64": (
        0.666666666666667, 0.3999999999989789, 0.2857142862665141, 0.22222211031749325, 0.18182896207631685,
        0.15331497764506818, 0.1461909699201228,
    ),
}  # fmt: skip
# (tanh(x) - x) / x^3 in x^2 <= 0.3906
_TANH = {
    "f32": (-0.333333313, 0.133332118, -0.0539474711, 0.0217042174, -0.00818540808, 0.00214979565),
    "f64": (
        -0.3333333333333333, 0.13333333333333183, -0.053968253968142144, 0.021869488532034, -0.008863235440784129,
        0.00359212680054479, -0.0014558228007679115, 0.000589951768402887, -0.00023877957630175819,
        9.57714614849881e-05, -3.6656206716462445e-05, 1.1821529699519316e-05, -2.282251188234935e-06,
    ),
}  # fmt: skip
# erf(x) / x - 1 in x^2 <= 1
_ERF = {
    "f32": (
        0.128379166, -0.376126379, 0.112837829, -0.0268654395, 0.00522105396, -0.000848437427, 0.00011267879,
        -9.671915e-06,
    ),
    "f64": (
        0.1283791670955126, -0.37612638903183754, 0.1128379167095512, -0.02686617064512984, 0.0052239776254232526,
        -0.0008548327021930222, 0.00012055332902623868, -1.4925647557918419e-05, 1.6462045212407208e-06,
        -1.6364638507424805e-07, 1.479236271232909e-08, -1.216430220113343e-09, 8.708051562158855e-11,
        -4.229268935881067e-12,
    ),
}  # fmt: skip
# erfc(x) * exp(x^2) in u = 2 / (2 + x), for 1 <= x <= 4.1 and 1 <= x <= 6
_ERFC = {
    "f32": (
        -0.000148936393, 0.284833461, 0.260195255, 0.346003026, -0.0998073295, 0.558476865, -0.467871487, 0.118365645,
    ),
    "f64": (
        -2.03230995976969e-08, 0.2820957148918539, 0.28207513747965246, 0.2470934425282963, 0.1739023991388288,
        0.10019150670841387, -0.09038452857846822, 0.2941657349334986, -1.1831193028789562, 2.8712788393260547,
        -5.703038599010898, 8.969564934304094, -10.420211855318753, 8.675306052366805, -5.055241083410115,
        1.969720590578143, -0.46333960669010615, 0.049940559541799046,
    ),
}  # fmt: skip
_ERF_END = {"f32": 4.1, "f64": 6.0}
# (sin(r) - r) / r^3 and (cos(r) - 1 + r^2 / 2) / r^4 in r^2 <= (pi / 4)^2
_SIN = (
    -0.16666666666666666, 0.008333333333333331, -0.0001984126984126502, 2.755731921930353e-06, -2.5052106220024738e-08,
    1.605852964458105e-10, -7.586580487904591e-13,
)  # fmt: skip
_COS = (
    0.041666666666666664, -0.0013888888888888887, 2.480158730158462e-05, -2.7557319221382924e-07,
    2.0876755784145613e-09, -1.1470459785853874e-11, 4.74580684080215e-14,
)  # fmt: skip

# ln 2 in two parts: the first has so few bits that its product with any exponent is exact.
_LN2 = {"f32": (0.693145751953125, 1.42860682031e-06), "f64": (0.6931471803691238, 1.9082149292705877e-10)}
# pi / 2 in three parts of 33, 33 and 53 bits.
_HALF_PI = (1.5707963267341256, 6.077100506303966e-11, 2.0222662487959506e-21)
_LARGE_ANGLE = 1e6

# Where exp reaches infinity and 0.
_EXP_RANGE = {"f32": (-104.5, 89.0), "f64": (-746.0, 710.0)}


def _polynomial(x: Any, coefficients: tuple[float, ...]) -> Any:
    """Horner's rule, lowest coefficient first."""
    total = x * coefficients[-1] + coefficients[-2]
    for coefficient in coefficients[-3::-1]:
        total = total * x + coefficient
    return total


def _reduce_exp(m: Any, x: Any) -> tuple[Any, Any, Any, Any]:
    """(r, its rounding error, first, second) with exp(x) = exp(r + error) * 2^(first + second - 2 bias)."""
    form: Format = m.format
    low, high = _EXP_RANGE[form.suffix]
    x = m.select(x > high, high, m.select(x < low, low, x))
    shifted = x * (1 / math.log(2)) + form.rounding_shift
    n = shifted - form.rounding_shift
    ln2_high, ln2_low = _LN2[form.suffix]
    near = x - n * ln2_high
    r = near - n * ln2_low
    error = (near - r) - n * ln2_low
    exponent = m.bits(shifted) - m.bits(m.constant(form.rounding_shift)) + 2 * form.bias
    first = exponent >> 1
    return r, error, first, exponent - first


def _power_of_two(m: Any, biased: Any) -> Any:
    return m.from_bits(biased << m.format.mantissa_bits)


def _exp_with_error(m: Any, x: Any) -> tuple[Any, Any]:
    """exp(x) and what its last rounding left out."""
    r, error, first, second = _reduce_exp(m, x)
    above_one = r + (r * r * _polynomial(r, _EXP[m.format.suffix]) + error)
    y = above_one + 1.0
    first_factor, second_factor = _power_of_two(m, first), _power_of_two(m, second)
    rest = above_one - (y - 1.0)
    return y * first_factor * second_factor, rest * first_factor * second_factor


def _exp(m: Any, x: Any) -> Any:
    return _exp_with_error(m, x)[0]


def _expm1(m: Any, x: Any) -> Any:
    """2^n (exp(r) - 1) + (2^n - 1), with 2^n in two factors so that neither overflows."""
    r, error, first, second = _reduce_exp(m, x)
    p = r + (r * r * _polynomial(r, _EXP[m.format.suffix]) + error)
    scale = _power_of_two(m, first)
    one = _power_of_two(m, 2 * m.format.bias - second)
    return (scale * p + (scale - one)) * _power_of_two(m, second)


def _split_log(m: Any, x: Any) -> tuple[Any, Any]:
    """(k, f) with x = 2^k (1 + f) and 1 + f between sqrt(1/2) and sqrt(2), for normal x."""
    form: Format = m.format
    one = form.bias << form.mantissa_bits
    half_root = int(np.array(math.sqrt(0.5), f"f{form.width // 8}").view(f"u{form.width // 8}"))
    shifted = m.bits(x) + (one - half_root)
    k = m.from_integer((shifted >> form.mantissa_bits) - form.bias)
    return k, m.from_bits((shifted & ((1 << form.mantissa_bits) - 1)) + half_root) - 1.0


def _assemble_log(m: Any, k: Any, f: Any, correction: Any) -> Any:
    """k ln 2 + log(1 + f) + correction."""
    s = f / (f + 2.0)
    z = s * s
    half_square = f * f * 0.5
    ln2_high, ln2_low = _LN2[m.format.suffix]
    tail = s * (half_square + z * _polynomial(z, _LOG[m.format.suffix])) + (k * ln2_low + correction)
    return k * ln2_high - ((half_square - tail) - f)


def _at_log_borders(m: Any, x: Any, argument: Any, usual: Any) -> Any:
    usual = m.select(x < math.inf, usual, x)
    return m.select(argument > 0.0, usual, m.select(argument == 0.0, m.constant(-math.inf), math.nan))


def _log(m: Any, x: Any) -> Any:
    form: Format = m.format
    subnormal = x < form.smallest_normal
    places = form.mantissa_bits + 1
    k, f = _split_log(m, m.select(subnormal, x * 2.0**places, x))
    k = m.select(subnormal, k - float(places), k)
    return _at_log_borders(m, x, x, _assemble_log(m, k, f, 0.0))


def _log1p(m: Any, x: Any) -> Any:
    total = x + 1.0
    rounded = total - 1.0
    error = (x - rounded) + (1.0 - (total - rounded))
    k, f = _split_log(m, total)
    near_one = k == 0.0
    f = m.select(near_one, x, f)
    correction = m.select(near_one, 0.0, error / total)
    return _at_log_borders(m, x, total, _assemble_log(m, k, f, correction))


def _sqrt(m: Any, x: Any) -> Any:
    return m.sqrt(x)


def _tanh(m: Any, x: Any) -> Any:
    size = m.absolute(x)
    z = x * x
    small = x * z * _polynomial(z, _TANH[m.format.suffix]) + x
    large = 1.0 - 2.0 / (_exp(m, size + size) + 1.0)
    return m.select(size < 0.625, small, m.copysign(large, x))


def _sigmoid(m: Any, x: Any) -> Any:
    """numerator / (1 + e) with e = exp(-|x|), which never overflows, corrected for what e and 1 + e round off."""
    e, e_error = _exp_with_error(m, -m.absolute(x))
    left = x < 0.0
    denominator = e + 1.0
    denominator_error = (e - (denominator - 1.0)) + e_error
    quotient = m.select(left, e, 1.0) / denominator
    reciprocal = m.select(left, 1.0 - quotient, quotient)
    return quotient + (m.select(left, e_error, 0.0) - quotient * denominator_error) * reciprocal


def _erf(m: Any, x: Any) -> Any:
    suffix = m.format.suffix
    size = m.absolute(x)
    end = _ERF_END[suffix]
    size = m.select(size > end, end, size)
    z = size * size
    small = x * _polynomial(z, _ERF[suffix]) + x
    u = 2.0 / (size + 2.0)
    large = 1.0 - _exp(m, -z) * _polynomial(u, _ERFC[suffix])
    return m.select(size < 1.0, small, m.copysign(large, x))


def _circular(m: Any, x: Any, quarter_turns: int) -> Any:
    """sin(x + quarter_turns * pi / 2) for |x| below a million, in double."""
    form: Format = m.format
    shifted = x * (2 / math.pi) + form.rounding_shift
    n = shifted - form.rounding_shift
    first, second, third = _HALF_PI
    r = ((x - n * first) - n * second) - n * third
    z = r * r
    sine = r * z * _polynomial(z, _SIN) + r
    cosine = 1.0 - (z * 0.5 - z * z * _polynomial(z, _COS))
    quadrant = m.bits(shifted) + quarter_turns
    y = m.select((quadrant & 1) == 0, sine, cosine)
    return m.select((quadrant & 2) == 0, y, -y)


def _turned(name: str, quarter_turns: int) -> Callable[[Any, Any], Any]:
    """sin or cos: computed in double; an angle of a million or more goes to libm."""

    def function(m: Any, x: Any) -> Any:
        if m.format.suffix == "f64":
            usual = _circular(m, x, quarter_turns)
        else:
            usual = m.from_double(_circular(m.in_double(), m.to_double(x), quarter_turns))
        return m.unless(m.absolute(x) > _LARGE_ANGLE, usual, name, x)

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
