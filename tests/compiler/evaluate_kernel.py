"""The meaning of a kernel tree in plain Python: slow, and as simple as can be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tapegrad.ir import sizes
from tapegrad.ir.graph import Graph
from tapegrad.ir.kernel import (
    Accumulate,
    AccumulateInto,
    Apply,
    Assign,
    Buffer,
    Check,
    Comment,
    Conditional,
    Constant,
    Declare,
    Expression,
    If,
    Let,
    Load,
    Loop,
    Matrix,
    Operation,
    Permutation,
    Phase,
    Product,
    RandomUniform,
    Schedule,
    SizeValue,
    Statement,
    Store,
    Variable,
)
from tapegrad.ir.sizes import Symbol
from tapegrad.kernels.cpu import philox
from tapegrad.primitives import PRIMITIVES

OPERATIONS = {"add": "add", "multiply": "multiply", "maximum": "maximum", "minimum": "minimum"}


class Left(Exception):
    """A check failed."""

    def __init__(self, code: int) -> None:
        super().__init__(f"status {code}")
        self.code = code


class Evaluator:
    """Runs statements on flat arrays."""

    def __init__(self, symbols: dict[Symbol, int]) -> None:
        self.symbols = symbols
        self.memory: dict[Buffer, np.ndarray] = {}
        self.variables: dict[str, Any] = {}

    def array(self, buffer: Buffer) -> np.ndarray:
        if buffer not in self.memory:
            count = sizes.evaluate(buffer.size, self.symbols)
            # What was never written must not look right.
            fill = np.nan if buffer.dtype.kind == "f" else 113 if buffer.dtype.kind in "iu" else True
            self.memory[buffer] = np.full(count, fill, buffer.dtype)
        return self.memory[buffer]

    def element(self, buffer: Buffer, index: Expression) -> tuple[np.ndarray, int]:
        array, position = self.array(buffer), int(self.value(index))
        assert 0 <= position < array.size, f"{buffer}[{position}] of {array.size}"
        return array, position

    def value(self, expression: Expression) -> Any:
        match expression:
            case Constant(value=value, dtype=dtype):
                return dtype.type(value)
            case Variable(name=name):
                return self.variables[name]
            case SizeValue(size=size):
                return np.int64(sizes.evaluate(size, self.symbols))
            case Load(buffer=buffer, index=index):
                array, position = self.element(buffer, index)
                return array[position]
            case Conditional(condition=condition, value=value, otherwise=otherwise):
                return self.value(value if self.value(condition) else otherwise)
            case RandomUniform(seed=seed, draw=draw, element=element, dtype=dtype):
                position = int(self.value(element))
                return philox.uniform(int(self.value(seed)), int(self.value(draw)), position + 1, dtype)[position]
            case Apply(primitive=primitive, arguments=arguments, dtype=dtype):
                operands = [np.asarray(self.value(argument)) for argument in arguments]
                for argument, operand in zip(arguments, operands, strict=True):
                    assert operand.dtype == argument.dtype, (argument, operand.dtype)
                with np.errstate(all="ignore"):
                    if primitive == "cast":
                        result = PRIMITIVES[primitive].numpy(*operands, dtype=dtype)
                    else:
                        result = PRIMITIVES[primitive].numpy(*operands)
                result = np.asarray(result)
                assert result.dtype == dtype, (primitive, result.dtype, dtype)
                return result[()]
        raise AssertionError(expression)

    def combine(self, operation: Operation, first: Any, second: Any) -> Any:
        dtype = np.asarray(first).dtype
        assert dtype == np.asarray(second).dtype
        with np.errstate(all="ignore"):
            return dtype.type(PRIMITIVES[OPERATIONS[operation]].numpy(first, second))

    def run(self, body: Sequence[Statement]) -> None:
        for statement in body:
            self.statement(statement)

    def statement(self, statement: Statement) -> None:
        match statement:
            case Loop(variable=name, stop=stop, body=body, start=start, step=step):
                for position in range(int(self.value(start)), int(self.value(stop)), step):
                    self.variables[name] = np.int64(position)
                    self.run(body)
            case Let(name=name, value=value) | Declare(name=name, initial=value) | Assign(name=name, value=value):
                self.variables[name] = self.value(value)
            case Accumulate(name=name, operation=operation, value=value):
                self.variables[name] = self.combine(operation, self.variables[name], self.value(value))
            case Store(buffer=buffer, index=index, value=value):
                result = self.value(value)
                array, position = self.element(buffer, index)
                assert np.asarray(result).dtype == array.dtype
                array[position] = result
            case AccumulateInto(buffer=buffer, index=index, operation=operation, value=value):
                array, position = self.element(buffer, index)
                array[position] = self.combine(operation, array[position], self.value(value))
            case If(condition=condition, body=body):
                if self.value(condition):
                    self.run(body)
            case Product():
                self.product(statement)
            case Phase():
                self.phase(statement)
            case Permutation(out=out, seed=seed, draw=draw, length=length):
                count = int(self.value(length))
                self.array(out)[:count] = philox.permutation(int(self.value(seed)), int(self.value(draw)), count)
            case Check(condition=condition, code=code):
                if not self.value(condition):
                    raise Left(code)
            case Comment():
                pass

    def phase(self, phase: Phase) -> None:
        """The chunks backwards, each knowing nothing of the others but what lies in buffers that are not its own."""
        outside, chunks = self.variables, int(self.value(phase.chunks))
        for chunk in reversed(range(chunks)):
            self.variables = {phase.variable: np.int64(chunk)}
            for item in phase.private:
                self.memory.pop(item.buffer, None)
            self.run(phase.body)
        self.variables = outside

    def product(self, product: Product) -> None:
        rows, columns, inner = (int(self.value(e)) for e in (product.rows, product.columns, product.inner))
        a = self.matrix(product.a, rows, inner)
        b = self.matrix(product.b, inner, columns)
        assert self.value(product.out.column) == 1
        out = self.places(product.out, rows, columns)
        array = self.array(product.out.buffer)
        alpha, beta = self.value(product.alpha), self.value(product.beta)
        result = alpha * (a @ b)
        if beta != 0:
            result = result + beta * array[out]
        array[out] = result

    def places(self, matrix: Matrix, rows: int, columns: int) -> np.ndarray:
        offset, row, column = (int(self.value(e)) for e in (matrix.offset, matrix.row, matrix.column))
        places = offset + np.arange(rows)[:, None] * row + np.arange(columns) * column
        assert places.size == 0 or (places.min() >= 0 and places.max() < self.array(matrix.buffer).size)
        return places

    def matrix(self, matrix: Matrix, rows: int, columns: int) -> np.ndarray:
        places = self.places(matrix, rows, columns)
        if not places.size:
            return np.zeros((rows, columns), matrix.buffer.dtype)
        result: np.ndarray = self.array(matrix.buffer)[places]
        return result


def run_schedule(schedule: Schedule, arrays: Sequence[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The outputs of a schedule, and what its inputs hold after it.

    Temporaries are forgotten between kernels unless a later kernel reads them, as the arena would.
    """
    graph: Graph = schedule.graph
    symbols = graph.bind([array.shape for array in arrays])
    assert symbols is not None
    evaluator = Evaluator(symbols)
    for buffer, array in zip(schedule.inputs, arrays, strict=True):
        evaluator.memory[buffer] = np.ascontiguousarray(array).reshape(-1).copy()
    for kernel in schedule.kernels:
        evaluator.variables.clear()
        for name, size in kernel.definitions:
            symbols[name] = sizes.evaluate(size, symbols)
        before = {buffer: evaluator.array(buffer).copy() for buffer in kernel.reads if buffer not in kernel.writes}
        evaluator.run(kernel.body)
        for buffer in [b for b in evaluator.memory if b.role == "scratch"]:
            del evaluator.memory[buffer]
        for buffer, old in before.items():
            np.testing.assert_array_equal(evaluator.array(buffer), old)
    resolved = [tuple(sizes.evaluate(size, symbols) for size in node.shape) for node in graph.outputs]
    outputs = [evaluator.array(b).reshape(shape) for b, shape in zip(schedule.outputs, resolved, strict=True)]
    inputs = [evaluator.array(b).reshape(a.shape) for b, a in zip(schedule.inputs, arrays, strict=True)]
    return outputs, inputs
