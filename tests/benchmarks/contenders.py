"""The contenders: each gives functions that run all steps of a workload and return the losses.

A contender is a function ``workload -> {way: Way}``. ``start()`` makes the state to begin with, weights and all;
``run(state)`` trains through all batches and returns one loss a step as a NumPy array. Only ``run`` is timed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .workloads import Workload


@dataclass(frozen=True)
class Way:
    """One way to run a workload."""

    start: Callable[[], Any]
    run: Callable[[Any], np.ndarray]


BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


def tapegrad_step(workload: Workload, jitted: bool = True) -> tuple[Any, Callable[[], None]]:
    """A training step of a new model, and what gives the model its first weights again."""
    import tapegrad as tg
    from tapegrad.models import MLP, SGD, Adam, cross_entropy, mse_loss, sse_loss

    loss_function = {"sse": sse_loss, "mse": mse_loss, "cross_entropy": cross_entropy}[workload.loss]
    last = "tanh" if workload.activation == "tanh" else None
    sizes = workload.sizes
    model = MLP(sizes[0], list(sizes[1:-1]), sizes[-1], activation=workload.activation, output_activation=last)
    if workload.optimizer == "adam":
        optimizer: Any = Adam(model.parameters(), lr=workload.lr, betas=(BETA1, BETA2), eps=EPSILON)
    else:
        optimizer = SGD(
            model.parameters(), lr=workload.lr, momentum=workload.momentum, weight_decay=workload.weight_decay
        )
    start = optimizer.state_dict()

    def step(x: Any, y: Any) -> Any:
        loss = loss_function(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    def reset() -> None:
        for parameter, value in zip(model.parameters(), workload.weights(), strict=True):
            parameter.data = tg.Tensor(value)
        optimizer.load_state_dict(start)
        # What was assigned is computed now: it is not part of what is timed.
        optimizer.state_dict(), model.state_dict()

    return tg.jit(step) if jitted else step, reset


def tapegrad(workload: Workload) -> dict[str, Way]:
    """This project: a call a step, one scan, and define-by-run."""
    import tapegrad as tg

    xs, ys = workload.batches()
    jitted, reset = tapegrad_step(workload)
    eager, reset_eager = tapegrad_step(workload, jitted=False)
    # Made beforehand, as the other contenders' own arrays are.
    tensors = [(tg.Tensor(x), tg.Tensor(y)) for x, y in zip(xs, ys, strict=True)]

    def call(_: None) -> np.ndarray:
        return np.array([jitted(x, y).item() for x, y in zip(xs, ys, strict=True)])

    def scan(_: None) -> np.ndarray:
        return np.asarray(jitted.scan(xs, ys))

    def define_by_run(_: None) -> np.ndarray:
        return np.array([eager(x, y).item() for x, y in tensors])

    return {"call": Way(reset, call), "scan": Way(reset, scan), "define-by-run": Way(reset_eager, define_by_run)}


def numpy(workload: Workload) -> dict[str, Way]:
    """NumPy by hand: forward, backward and update written out."""
    xs, ys = workload.batches()
    tanh = workload.activation == "tanh"

    def step(parameters: list[np.ndarray], state: list[np.ndarray], count: int, x: np.ndarray, y: np.ndarray) -> float:
        layers = len(parameters) // 2
        values = [x]
        for layer in range(layers):
            z = values[-1] @ parameters[2 * layer].T + parameters[2 * layer + 1]
            if tanh:
                z = np.tanh(z)
            elif layer < layers - 1:
                z = np.maximum(z, 0)
            values.append(z)
        out = values[-1]
        if workload.loss == "cross_entropy":
            shifted = out - out.max(1, keepdims=True)
            exponentials = np.exp(shifted)
            total = exponentials.sum(1, keepdims=True)
            rows = np.arange(len(y))
            loss = float(np.mean(np.log(total[:, 0]) - shifted[rows, y]))
            g = exponentials / total
            g[rows, y] -= 1
            g /= len(y)
        else:
            difference = out - y
            scale = 1.0 if workload.loss == "sse" else 1.0 / difference.size
            loss = float((difference * difference).sum() * scale)
            g = difference * np.float32(2 * scale)
        for layer in reversed(range(layers)):
            if tanh:
                g = g * (1 - values[layer + 1] ** 2)
            elif layer < layers - 1:
                g = g * (values[layer + 1] > 0)
            gradients = (g.T @ values[layer], g.sum(0))
            if layer:
                g = g @ parameters[2 * layer]
            for offset, gradient in enumerate(gradients):
                _update(workload, parameters[2 * layer + offset], gradient, state, 2 * layer + offset, count)
        return loss

    def start() -> tuple[list[np.ndarray], list[np.ndarray]]:
        parameters = workload.weights()
        return parameters, [np.zeros_like(p) for p in parameters for _ in range(2)]

    def run(beginning: tuple[list[np.ndarray], list[np.ndarray]]) -> np.ndarray:
        parameters, state = beginning
        return np.array([step(parameters, state, n + 1, x, y) for n, (x, y) in enumerate(zip(xs, ys, strict=True))])

    return {"by hand": Way(start, run)}


def _update(workload: Workload, p: np.ndarray, g: np.ndarray, state: list[np.ndarray], index: int, count: int) -> None:
    if workload.weight_decay:
        g = g + np.float32(workload.weight_decay) * p
    if workload.optimizer == "sgd":
        if workload.momentum:
            state[2 * index] *= np.float32(workload.momentum)
            state[2 * index] += g
            g = state[2 * index]
        p -= np.float32(workload.lr) * g
        return
    m, v = state[2 * index], state[2 * index + 1]
    m += np.float32(1 - BETA1) * (g - m)
    v += np.float32(1 - BETA2) * (g * g - v)
    rate = np.float32(workload.lr / (1 - BETA1**count))
    p -= rate * m / (np.sqrt(v) / np.float32(np.sqrt(1 - BETA2**count)) + np.float32(EPSILON))


def products(workload: Workload) -> dict[str, Way]:
    """The bare matrix products of the steps, in NumPy."""
    generator = np.random.default_rng(0)
    operands = [
        (generator.random((m, k), np.float32), generator.random((k, n), np.float32), np.empty((m, n), np.float32))
        for m, k, n in workload.products()
    ]

    def run(_: None) -> np.ndarray:
        for _ in range(workload.steps):
            for a, b, out in operands:
                np.matmul(a, b, out=out)
        return np.empty(0)

    return {"products": Way(lambda: None, run)}


def jax(workload: Workload, read_each: bool = True) -> dict[str, Way]:
    """JAX: jit a call, and lax.scan. On a GPU losses are read at the end, not one by one."""
    import jax
    import jax.numpy as jnp

    xs, ys = (jnp.asarray(part) for part in workload.batches())

    def predict(parameters: list[Any], x: Any) -> Any:
        for layer in range(0, len(parameters), 2):
            x = x @ parameters[layer].T + parameters[layer + 1]
            if workload.activation == "tanh":
                x = jnp.tanh(x)
            elif layer < len(parameters) - 2:
                x = jax.nn.relu(x)
        return x

    def loss(parameters: list[Any], x: Any, y: Any) -> Any:
        out = predict(parameters, x)
        if workload.loss == "cross_entropy":
            return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(out), y[:, None], 1))
        difference = out - y
        return jnp.sum(difference**2) if workload.loss == "sse" else jnp.mean(difference**2)

    def step(carry: Any, batch: Any) -> Any:
        parameters, first, second, count = carry
        value, gradients = jax.value_and_grad(loss)(parameters, *batch)
        if workload.weight_decay:
            gradients = [g + workload.weight_decay * p for g, p in zip(gradients, parameters, strict=True)]
        count = count + 1
        if workload.optimizer == "sgd":
            if workload.momentum:
                gradients = first = [workload.momentum * m + g for m, g in zip(first, gradients, strict=True)]
            parameters = [p - workload.lr * g for p, g in zip(parameters, gradients, strict=True)]
        else:
            first = [m + (1 - BETA1) * (g - m) for m, g in zip(first, gradients, strict=True)]
            second = [v + (1 - BETA2) * (g * g - v) for v, g in zip(second, gradients, strict=True)]
            rate, scale = workload.lr / (1 - BETA1**count), jnp.sqrt(1 - BETA2**count)
            parameters = [
                p - rate * m / (jnp.sqrt(v) / scale + EPSILON)
                for p, m, v in zip(parameters, first, second, strict=True)
            ]
        return (parameters, first, second, count), value

    compiled = jax.jit(step)
    scanned = jax.jit(lambda carry, batches: jax.lax.scan(step, carry, batches))

    def start() -> Any:
        parameters = [jnp.asarray(p) for p in workload.weights()]
        zeros = [jnp.zeros_like(p) for p in parameters]
        return parameters, zeros, zeros, jnp.float32(0)

    batches = [(xs[n], ys[n]) for n in range(workload.steps)]

    def call(carry: Any) -> np.ndarray:
        losses = []
        for batch in batches:
            carry, value = compiled(carry, batch)
            losses.append(float(value) if read_each else value)
        return np.array(jax.device_get(losses))

    return {"jit": Way(start, call), "scan": Way(start, lambda carry: np.asarray(scanned(carry, (xs, ys))[1]))}


def torch(workload: Workload) -> dict[str, Way]:
    """PyTorch, eager."""
    import torch

    xs, ys = (torch.from_numpy(part) for part in workload.batches())
    functional = torch.nn.functional

    def start() -> Any:
        parameters = [torch.tensor(p, requires_grad=True) for p in workload.weights()]
        if workload.optimizer == "adam":
            optimizer: Any = torch.optim.Adam(parameters, lr=workload.lr)
        else:
            optimizer = torch.optim.SGD(
                parameters, lr=workload.lr, momentum=workload.momentum, weight_decay=workload.weight_decay
            )
        return parameters, optimizer

    def run(beginning: Any) -> np.ndarray:
        parameters, optimizer = beginning
        losses = []
        for x, y in zip(xs, ys, strict=True):
            for layer in range(0, len(parameters), 2):
                x = functional.linear(x, parameters[layer], parameters[layer + 1])
                if workload.activation == "tanh":
                    x = torch.tanh(x)
                elif layer < len(parameters) - 2:
                    x = torch.relu(x)
            if workload.loss == "cross_entropy":
                loss = functional.cross_entropy(x, y)
            else:
                loss = functional.mse_loss(x, y, reduction="sum" if workload.loss == "sse" else "mean")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return np.array(losses)

    return {"eager": Way(start, run)}


def pytensor(workload: Workload) -> dict[str, Way]:
    """PyTensor with its Numba backend, a call a step."""
    import pytensor
    import pytensor.tensor as pt

    values = [pytensor.shared(p) for p in workload.weights()]
    x = pt.matrix("x", dtype="float32")
    y = pt.ivector("y") if workload.loss == "cross_entropy" else pt.matrix("y", dtype="float32")
    out = x
    for layer in range(0, len(values), 2):
        out = pt.dot(out, values[layer].T) + values[layer + 1]
        if workload.activation == "tanh":
            out = pt.tanh(out)
        elif layer < len(values) - 2:
            out = pt.maximum(out, np.float32(0))
    if workload.loss == "cross_entropy":
        loss = -pt.mean(pt.special.log_softmax(out, axis=1)[pt.arange(y.shape[0]), y])
    else:
        loss = pt.sum((out - y) ** 2) if workload.loss == "sse" else pt.mean((out - y) ** 2)
    loss = loss.astype("float32")
    updates: list[Any] = []
    count = pytensor.shared(np.float32(0))
    for p, g in zip(values, pt.grad(loss, values), strict=True):
        if workload.weight_decay:
            g = g + np.float32(workload.weight_decay) * p
        if workload.optimizer == "sgd":
            if workload.momentum:
                velocity = pytensor.shared(np.zeros_like(p.get_value()))
                g = np.float32(workload.momentum) * velocity + g
                updates.append((velocity, g))
            updates.append((p, p - np.float32(workload.lr) * g))
            continue
        m, v = pytensor.shared(np.zeros_like(p.get_value())), pytensor.shared(np.zeros_like(p.get_value()))
        one = np.float32(1)
        new_m = m + np.float32(1 - BETA1) * (g - m)
        new_v = v + np.float32(1 - BETA2) * (g * g - v)
        rate = np.float32(workload.lr) / (one - np.float32(BETA1) ** (count + one))
        scale = pt.sqrt(one - np.float32(BETA2) ** (count + one))
        updates += [(m, new_m), (v, new_v), (p, p - rate * new_m / (pt.sqrt(new_v) / scale + np.float32(EPSILON)))]
    state = [target for target, _ in updates]
    if workload.optimizer == "adam":
        updates.append((count, count + np.float32(1)))
    step = pytensor.function([x, y], loss, updates=[(t, u.astype("float32")) for t, u in updates], mode="NUMBA")
    xs, ys = workload.batches()
    labels = ys.astype("int32") if workload.loss == "cross_entropy" else ys

    def start() -> None:
        count.set_value(np.float32(0))
        for target in state:
            if not any(target is value for value in values):
                target.set_value(np.zeros_like(target.get_value()))
        for value, p in zip(values, workload.weights(), strict=True):
            value.set_value(p)

    def run(_: None) -> np.ndarray:
        return np.array([float(step(a, b)) for a, b in zip(xs, labels, strict=True)])

    return {"call": Way(start, run)}


#: By name, in the order of the table's columns. Those that are not installed are left out.
CONTENDERS: dict[str, Callable[[Workload], dict[str, Way]]] = {
    "tapegrad": tapegrad,
    "products": products,
    "numpy": numpy,
    "jax": jax,
    "torch": torch,
    "pytensor": pytensor,
}
