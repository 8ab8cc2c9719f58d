"""Random graphs that mix shapes, views, reductions, products and writes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tapegrad.errors import TapegradError
from tapegrad.ir import sizes
from tapegrad.ir.dtypes import is_half
from tapegrad.ir.graph import Builder, Graph, Node
from tapegrad.ir.sizes import Shape, symbol
from tapegrad.primitives import FLOAT64, INT64

N, M = symbol("n"), symbol("m")
SHAPES: list[Shape] = [(N, M), (N, M), (M,), (N, 1), (), (N, M), (N, N), (M, M), (2, N, M), (2, N, 1), (N,)]
BINARY = ("add", "subtract", "multiply", "maximum", "minimum")
UNARY = ("tanh", "sin", "relu", "sigmoid", "negative", "absolute")


class Maker:
    """Emits random nodes; values stay small, so that long programs stay comparable."""

    def __init__(self, seed: int, dtype: np.dtype) -> None:
        self.random = np.random.default_rng(seed)
        self.b = Builder()
        self.dtype = dtype
        self.pool = [self.b.input(shape, dtype, f"x{number}") for number, shape in enumerate(SHAPES)]
        self.indices = self.b.input((N,), INT64, "indices")

    def any(self) -> Node:
        """A node, often a new one."""
        newest = self.pool if self.random.random() < 0.4 else self.pool[-6:]
        return newest[self.random.integers(len(newest))]

    def axis(self, node: Node) -> int:
        return int(self.random.integers(len(node.shape)))

    def chance(self) -> bool:
        return bool(self.random.integers(2))

    def binary(self, a: Node) -> Node:
        return self.b.emit(BINARY[self.random.integers(len(BINARY))], a, self.any())

    def unary(self, a: Node) -> Node:
        return self.b.emit(UNARY[self.random.integers(len(UNARY))], a)

    def reduced(self, a: Node) -> Node:
        axes = tuple(axis for axis in range(len(a.shape)) if self.chance()) or (self.axis(a),)
        name = ("sum", "max", "min")[self.random.integers(3)]
        return self.b.emit("tanh", self.b.emit(name, a, axes=axes))

    def transposed(self, a: Node) -> Node:
        return self.b.emit("transpose", a, axes=tuple(self.random.permutation(len(a.shape)).tolist()))

    def reshaped(self, a: Node) -> Node:
        squeezed = tuple(size for size in a.shape if size != 1)
        return self.b.emit("reshape", a, shape=squeezed if self.chance() else (sizes.product(a.shape),))

    def flipped(self, a: Node) -> Node:
        return self.b.emit("flip", a, axes=(self.axis(a),))

    def cut_and_padded(self, a: Node) -> Node:
        start = tuple(0 if isinstance(size, int) else 1 for size in a.shape)
        step = (1,) * len(start)
        return self.b.emit(
            "pad", self.b.emit("slice", a, start=start, stop=a.shape, step=step), start=start, step=step, shape=a.shape
        )

    def product(self, a: Node) -> Node:
        made = self.b.emit("matmul", a, self.any(), transpose_a=self.chance(), transpose_b=self.chance())
        return self.b.emit("tanh", made)

    def taken(self, a: Node) -> Node:
        fits = self.b.emit("less_equal", self.b.constant(0, INT64), self.indices)
        checked = self.b.emit("checked", self.indices, fits, message="negative")
        return self.b.emit("take", a, checked, axis=a.shape.index(N))

    def scanned(self, a: Node) -> Node:
        return self.b.emit("tanh", self.b.emit("cumsum", a, axis=self.axis(a), reverse=self.chance()))

    def joined(self, a: Node) -> Node:
        return self.b.emit("concatenate", a, a, axis=self.axis(a))

    def position(self, a: Node) -> Node:
        return self.b.emit("cast", self.b.emit("argmax", a, axis=self.axis(a)), dtype=self.dtype)

    def softmax(self, a: Node) -> Node:
        last = (len(a.shape) - 1,)
        exponentials = self.b.emit("exp", a - self.b.emit("max", a, axes=last))
        return exponentials / self.b.emit("sum", exponentials, axes=last)


def random_graph(seed: int, count: int, dtype: np.dtype = FLOAT64) -> Graph:
    """A graph of about ``count`` operations that writes some of its inputs."""
    maker = Maker(seed, dtype)
    makers: list[Callable[[Node], Node]] = [
        *[maker.binary] * 7,
        *[maker.unary] * 3,
        *[maker.reduced] * 3,
        maker.transposed,
        maker.reshaped,
        maker.flipped,
        maker.cut_and_padded,
        maker.product,
        maker.taken,
        maker.scanned,
        maker.joined,
        # Among halves, neighbours of the largest are often equal to it but for one rounding.
        *[maker.position] * (not is_half(dtype)),
        *[maker.softmax] * 2,
    ]
    for _ in range(count):
        make = makers[maker.random.integers(len(makers))]
        a = maker.any()
        if make not in makers[:10] and not a.shape:
            continue
        try:
            node = make(a)
        except (TapegradError, ValueError):
            continue  # these shapes do not go together
        if len(node.shape) <= 4:
            maker.pool.append(node)
    b, random = maker.b, maker.random
    outputs = [maker.any() for _ in range(3)]
    writes = []
    for cell in random.permutation(len(SHAPES))[: random.integers(0, 6)]:
        fitting = [node for node in maker.pool if node.shape == SHAPES[cell]]
        value = fitting[-1 - random.integers(min(4, len(fitting)))]
        if maker.chance():
            value = maker.pool[cell] - value * 0.1
        writes.append((len(outputs), int(cell)))
        outputs.append(value)
    return b.graph(outputs, writes).check()
