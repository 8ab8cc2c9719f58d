"""The pieces that pictures are drawn from: SVG elements, colours, scales and axes.

Colours are those of Okabe and Ito (2008), which readers with any colour vision tell apart; curves differ in their
dashes and points in their shapes as well.
"""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#666666")
DASHES = ("none", "8 4", "2 3", "9 3 2 3", "14 4", "4 4", "1 3")
INK, FAINT_INK, GRID, FRAME, PAPER = "#1f2933", "#52606d", "#e4e7eb", "#9aa5b1", "#ffffff"
SANS = "Helvetica, Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif"
MONO = "Menlo, Consolas, 'DejaVu Sans Mono', 'Liberation Mono', monospace"
# The advance of a character, in units of the font size: rather too wide than too narrow.
SANS_ADVANCE, MONO_ADVANCE = 0.57, 0.61

NICE_STEPS = (1.0, 2.0, 5.0, 10.0)


def number(value: float) -> str:
    """A coordinate with at most two decimals."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def element(name: str, content: str = "", /, **attributes: str | float) -> str:
    """One element; underscores in the names of attributes stand for hyphens."""
    written = "".join(
        f' {key.replace("_", "-")}="{escape(value) if isinstance(value, str) else number(value)}"'
        for key, value in attributes.items()
    )
    return f"<{name}{written}>{content}</{name}>" if content else f"<{name}{written}/>"


def text(x: float, y: float, words: str, **attributes: str | float) -> str:
    """Words whose baseline begins at (x, y), or is anchored there as the attributes say."""
    options: dict[str, str | float] = {"font_size": 12, "fill": INK, **attributes}
    return element("text", escape(words), x=x, y=y, **options)


def path(points: Iterable[tuple[float, float]], **attributes: str | float) -> str:
    """A line through points, not filled."""
    steps = " ".join(f"{'L' if index else 'M'}{number(x)} {number(y)}" for index, (x, y) in enumerate(points))
    options: dict[str, str | float] = {"fill": "none", "stroke_linejoin": "round", **attributes}
    return element("path", d=steps, **options)


def marker(kind: int, x: float, y: float, size: float, **attributes: str | float) -> str:
    """A point whose shape tells its kind: disc, square, triangle, diamond, and again."""
    if kind % 4 == 0:
        return element("circle", cx=x, cy=y, r=size, **attributes)
    corners = {
        1: ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
        2: ((0.0, -1.2), (1.1, 0.8), (-1.1, 0.8)),
        3: ((0.0, -1.3), (1.1, 0.0), (0.0, 1.3), (-1.1, 0.0)),
    }[kind % 4]
    places = " ".join(f"{number(x + size * dx)},{number(y + size * dy)}" for dx, dy in corners)
    return element("polygon", points=places, **attributes)


def document(width: float, height: float, title: str, parts: Iterable[str], font: str = SANS) -> str:
    """A picture on white paper; its title is also what a screen reader says."""
    paper = element("rect", width=width, height=height, fill=PAPER)
    body = "\n".join([element("title", escape(title)), paper, *parts])
    size = f'width="{number(width)}" height="{number(height)}" viewBox="0 0 {number(width)} {number(height)}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" font-family="{font}">\n{body}\n</svg>\n'


def raster(x: float, y: float, width: float, height: float, pixels: NDArray[np.uint8]) -> str:
    """An image of shape (rows, columns, 3), top row first, stretched over a rectangle."""
    rows, columns, _ = pixels.shape

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    lines = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines, 9)) + chunk(b"IEND", b"")
    link = "data:image/png;base64," + base64.b64encode(png).decode()
    return element("image", x=x, y=y, width=width, height=height, preserveAspectRatio="none", href=link)


@dataclass(frozen=True)
class Scale:
    """Maps values between ``low`` and ``high`` to places between ``start`` and ``end``, linearly or by logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        if self.log:
            part = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            part = (value - self.low) / (self.high - self.low)
        return self.start + part * (self.end - self.start)

    def ticks(self, most: int) -> list[float]:
        """At most about that many round values within the scale."""
        return log_ticks(self.low, self.high, most) if self.log else linear_ticks(self.low, self.high, most)


def linear_ticks(low: float, high: float, most: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten, from ``low`` to ``high``."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(nice * power for nice in NICE_STEPS if nice * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def log_ticks(low: float, high: float, most: int) -> list[float]:
    """Powers of ten, with their doubles and fivefolds where there is room."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for steps in ((1.0, 2.0, 5.0), (1.0, 3.0), (1.0,)):
        ticks = [step * 10.0**power for power in range(first, last + 1) for step in steps]
        inside = [tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
        if len(inside) <= most:
            return inside
    return inside[:: -(-len(inside) // most)]


def tick_label(value: float, ticks: Sequence[float]) -> str:
    """A tick in the fewest digits that tell it from the others."""
    if value == 0:
        return "0"
    largest = max(abs(tick) for tick in ticks)
    if largest >= 1e6 or largest < 1e-3 or abs(value) < 1e-4:
        return f"{value:.3g}".replace("e+0", "e").replace("e-0", "e-").replace("e+", "e")
    return f"{value:.6g}" if abs(value) < 1e4 else f"{value:,.0f}"


def axes(
    horizontal: Scale, vertical: Scale, x_label: str, y_label: str, *, most: tuple[int, int] = (8, 6), grid: bool = True
) -> list[str]:
    """Grid, frame, ticks with their numbers, and the names of both axes."""
    left, right, bottom, top = horizontal.start, horizontal.end, vertical.start, vertical.end
    parts = []
    x_ticks, y_ticks = horizontal.ticks(most[0]), vertical.ticks(most[1])
    for tick in y_ticks:
        y = vertical(tick)
        if grid:
            parts.append(path([(left, y), (right, y)], stroke=GRID))
        label = tick_label(tick, y_ticks)
        parts.append(text(left - 8, y + 4, label, text_anchor="end", fill=FAINT_INK))
    for tick in x_ticks:
        x = horizontal(tick)
        parts.append(path([(x, bottom), (x, bottom + 5)], stroke=FRAME))
        parts.append(text(x, bottom + 19, tick_label(tick, x_ticks), text_anchor="middle", fill=FAINT_INK))
    parts.append(path([(left, top), (left, bottom), (right, bottom)], stroke=FRAME))
    parts.append(text((left + right) / 2, bottom + 40, x_label, text_anchor="middle", font_size=13))
    middle = (top + bottom) / 2
    place = f"translate({number(left - 58)} {number(middle)}) rotate(-90)"
    parts.append(text(0, 0, y_label, text_anchor="middle", font_size=13, transform=place))
    return parts


def legend(
    names: Sequence[str], left: float, right: float, top: float, samples: Sequence[str]
) -> tuple[list[str], float]:
    """Rows of samples with their names, and the height that they take. A sample is drawn from (0, 0) to (22, 0)."""
    parts = []
    x, y = left, top
    for name, sample in zip(names, samples, strict=True):
        width = 30 + len(name) * 12 * SANS_ADVANCE
        if x > left and x + width > right:
            x, y = left, y + 20
        parts.append(element("g", sample, transform=f"translate({number(x)} {number(y)})"))
        parts.append(text(x + 30, y + 4, name))
        x += width + 22
    return parts, y - top + 20 if names else 0.0


def mix(colours: Sequence[str], weights: NDArray[Any], towards_white: float) -> NDArray[np.uint8]:
    """Colours blended by weights of shape (..., colours), then lightened: 1 is white."""
    palette = np.array([[int(colour[at : at + 2], 16) for at in (1, 3, 5)] for colour in colours], dtype=np.float64)
    blended = weights @ palette
    return np.clip(np.rint(blended + (255 - blended) * towards_white), 0, 255).astype(np.uint8)
