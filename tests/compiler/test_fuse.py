"""Which values share a kernel, what is stored, and when inputs may be overwritten."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from tapegrad.compiler.fuse import schedule
from tapegrad.compiler.simplify import simplify
from tapegrad.derivatives import vjp
from tapegrad.errors import Location
from tapegrad.ir import sizes
from tapegrad.ir.graph import Builder, Graph, Node
from tapegrad.ir.kernel import Check, Kernel, Loop, Product, Schedule, Statement
from tapegrad.ir.sizes import symbol
from tapegrad.primitives import FLOAT32, FLOAT64, INT64
from tapegrad.runtime.interpreter import interpret
from tests.compiler.evaluate_kernel import Left, run_schedule
from tests.compiler.random_graphs import random_graph

N = symbol("n")


def assert_computes(graph: Graph, result: Schedule, rows: int, seed: int = 0) -> None:
    """The schedule gives the interpreter's outputs, and leaves in every input its new value or its old one."""
    random = np.random.default_rng(seed)
    symbols = {name: rows for name in graph.symbols()}
    arrays = []
    for node in graph.inputs:
        shape = tuple(sizes.evaluate(size, symbols) for size in node.shape)
        is_float = node.dtype.kind == "f"
        values = np.abs(random.normal(size=shape)) if is_float else random.integers(0, max(min(2, rows), 1), shape)
        arrays.append(np.asarray(values).astype(node.dtype))
    wanted = interpret(graph, arrays)
    outputs, after = run_schedule(result, arrays)
    tolerance = 1e-9 if graph.outputs[0].dtype == FLOAT64 else 3e-4
    for number, (output, want) in enumerate(zip(outputs, wanted, strict=True)):
        np.testing.assert_allclose(output, want, rtol=tolerance, atol=tolerance / 10, err_msg=f"output {number}")
    new = {cell: wanted[output] for output, cell in graph.writes}
    for number, (array, old) in enumerate(zip(after, arrays, strict=True)):
        np.testing.assert_allclose(array, new.get(number, old), rtol=tolerance, atol=tolerance / 10)


def names(result: Schedule) -> list[str]:
    return [kernel.name for kernel in result.kernels]


def loops(kernel: Kernel) -> list[Loop]:
    """All loops of a kernel, outer ones first."""
    found: list[Loop] = []
    stack: list[Statement] = list(kernel.body)
    while stack:
        statement = stack.pop(0)
        if isinstance(statement, Loop):
            found.append(statement)
            stack = [*statement.body, *stack]
    return found


# Networks -------------------------------------------------------------------------------------------------------


def softmax_cross_entropy(b: Builder, scores: Node, labels: Node, classes: int) -> Node:
    """The mean over rows, from checked integer labels."""
    count = scores.shape[0]
    low = b.emit("less_equal", b.constant(0, INT64), labels)
    fits = b.emit("logical_and", low, b.emit("less", labels, b.constant(classes, INT64)))
    checked = b.emit("checked", labels, fits, message="label out of range")
    shifted = scores - b.emit("stop_gradient", b.emit("max", scores, axes=(1,)))
    log_total = b.emit("log", b.emit("sum", b.emit("exp", shifted), axes=(1,)))
    classes_row = b.emit("reshape", b.emit("iota", length=classes, dtype=INT64), shape=(1, classes))
    picked = b.emit("equal", classes_row, b.emit("reshape", checked, shape=(count, 1)))
    log_likelihood = b.emit("sum", b.emit("where", picked, shifted - log_total, b.constant(0, FLOAT32)), axes=(1,))
    total = b.emit("sum", b.emit("reshape", log_likelihood, shape=(count,)), axes=(0,))
    return -(b.emit("reshape", total, shape=()) / b.size_value(count, FLOAT32))


def network_step(widths: Sequence[int], optimizer: str = "sgd", activation: str = "relu") -> Graph:
    """Forward, backward and update of a multi-layer perceptron with softmax cross-entropy."""
    b = Builder()
    x, y, rate = b.input((N, widths[0]), FLOAT32, "x"), b.input((N,), INT64, "y"), b.input((), FLOAT32, "lr")
    weights = [
        b.input(shape, FLOAT32, f"{name}{layer}")
        for layer, (fan_in, fan_out) in enumerate(zip(widths, widths[1:], strict=False))
        for name, shape in (("W", (fan_out, fan_in)), ("b", (fan_out,)))
    ]
    moments = [b.input(w.shape, FLOAT32, f"{b.names[w]}_m") for w in weights] if optimizer != "sgd" else []
    squares = [b.input(w.shape, FLOAT32, f"{b.names[w]}_v") for w in weights] if optimizer == "adam" else []
    steps = b.input((), FLOAT32, "t") if optimizer == "adam" else rate
    h = x
    for layer in range(len(widths) - 1):
        transposed = b.emit("transpose", weights[2 * layer], axes=(1, 0))
        h = b.emit("matmul", h, transposed, transpose_a=False, transpose_b=False) + weights[2 * layer + 1]
        h = b.emit(activation, h) if layer < len(widths) - 2 else h
    loss = softmax_cross_entropy(b, h, y, widths[-1])
    gradients = vjp(b, [loss], [b.constant(1, FLOAT32)], weights)
    outputs, writes = [loss], []

    def write(cell: Node, value: Node) -> None:
        writes.append((len(outputs), b.inputs.index(cell)))
        outputs.append(value)

    if optimizer == "adam":
        new_steps = steps + 1.0
        write(steps, new_steps)
        first, second = (1.0 - b.emit("power", b.constant(beta, FLOAT32), new_steps) for beta in (0.9, 0.999))
    for position, (weight, gradient) in enumerate(zip(weights, gradients, strict=True)):
        assert gradient is not None
        update = gradient
        if optimizer != "sgd":
            update = moments[position] * 0.9 + gradient * 0.1
            write(moments[position], update)
        if optimizer == "adam":
            square = squares[position] * 0.999 + gradient * gradient * 0.001
            write(squares[position], square)
            update = (update / first) / (b.emit("sqrt", square / second) + 1e-8)
        write(weight, weight - rate * update)
    return simplify(b.graph(outputs, writes).check())


@pytest.mark.parametrize(
    ("widths", "optimizer", "activation", "kernels"),
    [
        ([784, 128, 10], "sgd", "relu", 6),
        ([784, 128, 10], "momentum", "relu", 6),
        ([784, 128, 10], "adam", "relu", 7),
        ([64, 32, 32, 10], "sgd", "tanh", 9),
        ([784, 1024, 1024, 10], "sgd", "relu", 9),
        ([2, 3, 2], "sgd", "tanh", 1),
        ([2, 64, 64, 2], "sgd", "relu", 5),
    ],
)
def test_a_training_step_takes_few_kernels(widths: list[int], optimizer: str, activation: str, kernels: int) -> None:
    result = schedule(network_step(widths, optimizer, activation))
    assert len(result.kernels) <= kernels, names(result)


@pytest.mark.parametrize(
    ("widths", "optimizer", "most"),
    [
        # Every kernel's reads and writes at 64 rows: x twice, weights read and written, and activations.
        ([784, 128, 10], "sgd", 1_833_060),
        ([784, 128, 10], "adam", 3_461_428),
        ([2, 64, 64, 2], "sgd", 186_912),
        ([2, 3, 3], "sgd", 1_228),
    ],
)
def test_a_training_step_moves_few_bytes(widths: list[int], optimizer: str, most: int) -> None:
    graph = network_step(widths, optimizer)
    symbols = dict.fromkeys(graph.symbols(), 64)
    assert sum(sizes.evaluate(kernel.bytes, symbols) for kernel in schedule(graph).kernels) <= most


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize("rows", [0, 1, 2, 7])
def test_a_training_step_computes_what_the_interpreter_does(optimizer: str, rows: int) -> None:
    graph = network_step([5, 4, 2], optimizer)
    assert_computes(graph, schedule(graph), rows)


def test_the_gradient_step_of_plain_sgd_is_the_product_itself_written_into_the_weights() -> None:
    result = schedule(network_step([784, 128, 10]))
    last = [statement for kernel in result.kernels[-2:] for statement in kernel.body]
    products = [statement for statement in last if isinstance(statement, Product)]
    assert {product.out.buffer.name for product in products} == {"W0", "W1"}
    assert not any(isinstance(statement, Loop) for statement in last)


STEPS = {
    "weight decay": lambda w, g, r, d: w - r * (g + d * w),
    "a penalty before the gradient": lambda w, g, r, d: w - r * (d * w * 2.0 + g),
    "decoupled decay": lambda w, g, r, d: w * (1.0 - r * d) - r * g,
    "ascent": lambda w, g, r, d: r * g + w,
    "a divided rate": lambda w, g, r, d: -(g / d - w),
}


@pytest.mark.parametrize("case", STEPS)
def test_a_step_that_is_a_sum_of_multiples_is_the_product_alone(case: str) -> None:
    b = Builder()
    x, g, w = b.input((N, 9), FLOAT64, "x"), b.input((N, 7), FLOAT64, "g"), b.input((7, 9), FLOAT64, "w")
    rate, decay = b.input((), FLOAT64, "rate"), b.input((), FLOAT64, "decay")
    gradient = b.emit("matmul", g, x, transpose_a=True, transpose_b=False)
    graph = b.graph([STEPS[case](w, gradient, rate, decay)], [(0, 2)])
    result = schedule(graph)
    (kernel,) = result.kernels
    (product,) = (statement for statement in kernel.body if isinstance(statement, Product))
    assert product.out.buffer is result.inputs[2] and not loops(kernel)
    for rows in (0, 1, 5):
        assert_computes(graph, result, rows)


@pytest.mark.parametrize("case", ["another array", "squared", "nothing kept"])
def test_other_steps_follow_the_product(case: str) -> None:
    b = Builder()
    x, g, w = b.input((N, 9), FLOAT64, "x"), b.input((N, 7), FLOAT64, "g"), b.input((7, 9), FLOAT64, "w")
    v = b.input((7, 9), FLOAT64, "v")
    gradient = b.emit("matmul", g, x, transpose_a=True, transpose_b=False)
    new = {"another array": w - gradient * v, "squared": w - gradient * gradient, "nothing kept": gradient * 0.5}[case]
    graph = b.graph([new], [(0, 2)])
    result = schedule(graph)
    assert any(loops(kernel) for kernel in result.kernels)
    assert_computes(graph, result, 3)


def test_softmax_cross_entropy_its_gradient_and_column_sums_share_one_row_loop() -> None:
    b = Builder()
    scores, labels = b.input((N, 10), FLOAT32, "scores"), b.input((N,), INT64, "labels")
    loss = softmax_cross_entropy(b, scores, labels, 10)
    (gradient,) = vjp(b, [loss], [b.constant(1, FLOAT32)], [scores])
    assert gradient is not None
    graph = simplify(b.graph([loss, gradient, b.emit("sum", gradient, axes=(0,))]))
    (kernel,) = schedule(graph).kernels
    assert any(isinstance(statement, Check) for statement in kernel.body)
    nested = [loop for loop in kernel.body if isinstance(loop, Loop) and any(isinstance(s, Loop) for s in loop.body)]
    assert len(nested) == 1
    assert len([s for s in nested[0].body if isinstance(s, Loop)]) == 3
    assert_computes(graph, schedule(graph), 5)


def test_a_large_product_lies_where_the_code_behind_it_stores_its_result() -> None:
    b = Builder()
    x, w = b.input((N, 784), FLOAT32, "x"), b.input((784, 1024), FLOAT32, "w")
    hidden = b.emit("relu", b.emit("matmul", x, w, transpose_a=False, transpose_b=False) + 1.0)
    (kernel,) = schedule(b.graph([hidden])).kernels
    (product,) = (statement for statement in kernel.body if isinstance(statement, Product))
    assert product.out.buffer is kernel.writes[0]
    assert_computes(b.graph([hidden]), schedule(b.graph([hidden])), 2)


def test_masks_of_a_stored_activation_are_computed_again_instead_of_stored() -> None:
    result = schedule(network_step([20, 12, 3]))
    assert not any(buffer.dtype == np.bool_ for kernel in result.kernels for buffer in kernel.writes)


def test_pointwise_code_on_whole_arrays_is_one_flat_loop() -> None:
    b = Builder()
    x, y = b.input((N, 3, 5), FLOAT32, "x"), b.input((N, 3, 5), FLOAT32, "y")
    (kernel,) = schedule(b.graph([b.emit("exp", x) * y + 2.0])).kernels
    (loop,) = loops(kernel)
    assert loop.kind == "vector"
    assert kernel.flops == 3 * 15 * N and kernel.bytes == 3 * 60 * N


def test_siblings_that_read_the_same_value_share_its_loop() -> None:
    b = Builder()
    x = b.input((N, 8), FLOAT32, "x")
    (kernel,) = schedule(b.graph([b.emit("exp", x), b.emit("sin", x), b.emit("sum", x, axes=(0, 1))])).kernels
    assert len(loops(kernel)) == 1


def test_layer_normalisation_is_one_row_loop() -> None:
    b = Builder()
    x = b.input((N, 16), FLOAT32, "x")
    centred = x - b.emit("sum", x, axes=(1,)) * (1 / 16)
    variance = b.emit("sum", centred * centred, axes=(1,)) * (1 / 16)
    graph = b.graph([centred / b.emit("sqrt", variance + 1e-5)])
    result = schedule(graph)
    (kernel,) = result.kernels
    assert len([statement for statement in kernel.body if isinstance(statement, Loop)]) == 1
    assert kernel.writes == result.outputs
    assert_computes(graph, result, 4)


def test_names_and_titles_say_what_a_kernel_does_and_where_it_comes_from() -> None:
    b = Builder()
    x = b.input((N, 4), FLOAT32, "layers.0.x")
    b.location = Location("/somewhere/train.py", 10, "step")
    (kernel,) = schedule(b.graph([b.emit("exp", x) + 1.0])).kernels
    assert kernel.name == "k0_exp_add"
    assert kernel.title == "exp, add  (train.py:10)"
    assert [buffer.name for buffer in kernel.reads] == ["layers_0_x"]


# Writing in place -----------------------------------------------------------------------------------------------


def test_a_new_value_is_written_where_the_old_one_was_read() -> None:
    b = Builder()
    w, g = b.input((N,), FLOAT64, "w"), b.input((N,), FLOAT64, "g")
    graph = b.graph([w - g * 0.1], [(0, 0)])
    result = schedule(graph)
    (kernel,) = result.kernels
    assert kernel.writes == (result.inputs[0],) and result.outputs[0] is result.inputs[0]
    assert_computes(graph, result, 5)


def test_readers_of_the_old_value_run_before_it_is_overwritten() -> None:
    b = Builder()
    w, x = b.input((N, N), FLOAT64, "w"), b.input((N, N), FLOAT64, "x")
    stepped = w - x
    read_later = b.emit("matmul", b.emit("exp", x), w, transpose_a=False, transpose_b=False)
    graph = b.graph([stepped, read_later], [(0, 0)])
    result = schedule(graph)
    written = [number for number, kernel in enumerate(result.kernels) if result.inputs[0] in kernel.writes]
    read = [number for number, kernel in enumerate(result.kernels) if result.inputs[0] in kernel.reads]
    assert len(result.kernels) == 3 and max(read) == min(written) == 2
    assert_computes(graph, result, 3)


@pytest.mark.parametrize("case", ["transposed", "needed by a reader", "swapped", "shifted"])
def test_a_copy_at_the_end_where_writing_in_place_would_lose_a_value(case: str) -> None:
    b = Builder()
    w, v = b.input((N, N), FLOAT64, "w"), b.input((N, N), FLOAT64, "v")
    transposed = b.emit("transpose", w, axes=(1, 0))
    if case == "transposed":
        graph = b.graph([b.emit("sin", transposed)], [(0, 0)])
    elif case == "needed by a reader":
        new = b.emit("sin", w)
        graph = b.graph([new, b.emit("matmul", w, new, transpose_a=False, transpose_b=False)], [(0, 0)])
    elif case == "swapped":
        graph = b.graph([v, w], [(0, 0), (1, 1)])
    else:
        graph = b.graph([b.emit("sin", v), b.emit("sin", w), w], [(0, 0), (1, 1)])
    assert_computes(graph, schedule(graph), 4)


def test_checks_come_before_the_first_input_is_overwritten() -> None:
    b = Builder()
    w, y = b.input((3,), FLOAT64, "w"), b.input((N,), INT64, "y")
    v = b.input((3,), FLOAT64, "v")
    positive = b.emit("less", b.constant(-1, INT64), y)
    checked = b.emit("checked", y, positive, message="negative")
    three = b.emit("slice", checked, start=(0,), stop=(3,), step=(1,))
    graph = b.graph([v * 2.0, w + b.emit("take", w, three, axis=0)], [(0, 2), (1, 0)])
    result = schedule(graph)
    kinds = [
        "check" if any(isinstance(s, Check) for s in kernel.body) else "write"
        for kernel in result.kernels
        if any(isinstance(s, Check) for s in kernel.body) or set(kernel.writes) & set(result.inputs)
    ]
    assert kinds == sorted(kinds) and kinds[0] == "check"
    arrays = [np.arange(3.0), np.array([0, 1, -1]), np.ones(3)]
    with pytest.raises(Left):
        run_schedule(result, arrays)


# Any graph ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_random_graphs_with_writes(seed: int) -> None:
    graph = random_graph(seed, 12 + seed)
    result = schedule(graph)
    for kernel in result.kernels:
        kernel.graph.check()
    buffers = {buffer for kernel in result.kernels for buffer in (*kernel.reads, *kernel.writes)}
    assert len({buffer.name for buffer in buffers}) == len(buffers)
    for rows in (1, 3):
        assert_computes(graph, result, rows, seed)


def test_a_loop_has_many_operations_side_by_side_and_fewer_that_wait_for_each_other() -> None:
    b = Builder()
    x = b.input((N, 20), FLOAT64, "x")
    chain, columns = x, [x * float(number) for number in range(2, 7)]
    for position in range(100):
        chain = b.emit("sin", chain) * 1.5
        columns[position % 5] = b.emit("sin", columns[position % 5]) * float(position + 2)
    (kernel,) = schedule(b.graph([chain])).kernels
    assert len(loops(kernel)) == 4
    (kernel,) = schedule(b.graph(columns)).kernels
    assert len(loops(kernel)) == 1


def test_long_chains_are_cut_and_take_time_in_proportion() -> None:
    b = Builder()
    h = b.input((N, 2), FLOAT64, "x")
    for position in range(4000):
        h = b.emit("sin", h) if position % 2 else h * 1.01
    graph = b.graph([h])
    result = schedule(graph)
    assert 2 <= len(result.kernels) <= 4000 // 50
    assert_computes(graph, result, 2)


def test_chains_of_views_and_of_numbers() -> None:
    b = Builder()
    x, number = b.input((N, N), FLOAT64, "x"), b.input((), FLOAT64, "number")
    for _ in range(1500):
        x = b.emit("transpose", x, axes=(1, 0))
        number = b.emit("sin", number) + 0.5
    graph = b.graph([x, number])
    assert_computes(graph, schedule(graph), 2)


@pytest.mark.parametrize("what", ["plain", "the gradient is kept", "of another cell", "returned twice"])
def test_without_panels_a_product_never_stands_in_a_loop(what: str) -> None:
    b = Builder()
    w, v = b.input((10, 7), FLOAT64, "w"), b.input((10, 7), FLOAT64, "v")
    x, g = b.input((N, 10), FLOAT64, "x"), b.input((N, 7), FLOAT64, "g")
    rate = b.input((), FLOAT64, "rate")
    gradient = b.emit("matmul", x, g, transpose_a=True, transpose_b=False) + w * 0.5
    new = (v if what == "of another cell" else w) - rate * gradient
    outputs = {"the gradient is kept": [new, gradient], "returned twice": [new, new]}.get(what, [new])
    graph = simplify(b.graph(outputs, writes=[(0, 0)]))
    result = schedule(graph, panels=False)
    within = [part for kernel in result.kernels for loop in loops(kernel) for part in loop.body]
    assert not any(isinstance(part, Product) for part in within)
    assert_computes(graph, result, rows=5)
    products = [part for kernel in result.kernels for part in kernel.body if isinstance(part, Product)]
    assert len(products) == 1 and (products[0].out.buffer.name == "w") == (what == "plain")
