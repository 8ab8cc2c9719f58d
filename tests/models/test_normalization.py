"""LayerNorm and BatchNorm1d against NumPy, in both modes, define-by-run and compiled."""

from __future__ import annotations

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.errors import ShapeError, ValueCheckError
from tapegrad.models import SGD, BatchNorm1d, LayerNorm, Linear, Sequential

RANDOM = np.random.default_rng(0)


def normalized(x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 1e-5)


def test_layer_norm_works_on_the_last_axes() -> None:
    x = RANDOM.normal(2.0, 3.0, (4, 5, 6))
    for shape, axes in ((6, (-1,)), ((5, 6), (-2, -1))):
        layer = LayerNorm(shape, dtype="float64")
        with tg.no_grad():
            layer.weight *= 2.0
            layer.bias += 1.0
        np.testing.assert_allclose(layer(x).numpy(), 2 * normalized(x, axes) + 1, rtol=1e-12)


def test_layer_norm_without_weights_keeps_the_dtype() -> None:
    layer = LayerNorm(3, elementwise_affine=False)
    assert not list(layer.parameters())
    assert layer(np.zeros((2, 3), np.float64)).dtype == np.float64
    assert layer(np.zeros((2, 3), np.int64)).dtype == np.float32


def test_layer_norm_names_shapes_that_do_not_fit() -> None:
    with pytest.raises(ShapeError, match=r"LayerNorm: the input has shape \(2, 4\)"):
        LayerNorm(3)(np.zeros((2, 4)))


@pytest.mark.parametrize(("shape", "axes"), [((8, 3), (0,)), ((4, 3, 5), (0, 2))])
def test_batch_norm_uses_the_batch_while_training_and_follows_it(shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    layer = BatchNorm1d(3, dtype="float64")
    mean, var = np.zeros(3), np.ones(3)
    for _ in range(3):
        x = RANDOM.normal(1.0, 2.0, shape)
        np.testing.assert_allclose(layer(x).numpy(), normalized(x, axes), rtol=1e-12)
        mean, var = 0.9 * mean + 0.1 * x.mean(axes), 0.9 * var + 0.1 * x.var(axes, ddof=1)
    np.testing.assert_allclose(layer.running_mean.numpy(), mean, rtol=1e-12)
    np.testing.assert_allclose(layer.running_var.numpy(), var, rtol=1e-12)
    assert layer.num_batches_tracked.item() == 3
    view = (1, 3) + (1,) * (len(shape) - 2)
    expected = (x - mean.reshape(view)) / np.sqrt(var.reshape(view) + 1e-5)
    np.testing.assert_allclose(layer.eval()(x).numpy(), expected, rtol=1e-12)
    assert layer.num_batches_tracked.item() == 3


def test_batch_norm_without_momentum_takes_the_plain_mean() -> None:
    layer = BatchNorm1d(2, momentum=None, dtype="float64")
    batches = RANDOM.normal(size=(4, 8, 2))
    for x in batches:
        layer(x)
    np.testing.assert_allclose(layer.running_mean.numpy(), batches.mean((0, 1)), rtol=1e-12)


def test_batch_norm_without_running_statistics_always_uses_the_batch() -> None:
    layer = BatchNorm1d(2, track_running_stats=False, affine=False).eval()
    assert not layer.state_dict()
    x = RANDOM.normal(size=(8, 2))
    np.testing.assert_allclose(layer(x).numpy(), normalized(x, (0,)), rtol=1e-12)


def test_batch_norm_refuses_a_batch_of_one_value_and_keeps_its_statistics() -> None:
    layer = BatchNorm1d(2)
    with pytest.raises(ShapeError, match="more than one value a feature"):
        layer(np.ones((1, 2)))
    forward = tg.jit(lambda x: layer(x))
    forward(np.ones((4, 2), np.float32))
    before = layer.state_dict()
    with pytest.raises(ValueCheckError, match="more than one value a feature"):
        forward(np.ones((1, 2), np.float32))
    for name, array in layer.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    with pytest.raises(ShapeError, match=r"BatchNorm1d\(2\): the input has shape \(4, 3\)"):
        layer(np.ones((4, 3)))


def test_a_compiled_step_moves_the_statistics_and_each_mode_is_a_program() -> None:
    tg.manual_seed(0)
    model, twin = (Sequential(Linear(3, 4), BatchNorm1d(4), Linear(4, 1)) for _ in range(2))
    twin.load_state_dict(model.state_dict())
    optimizers = [SGD(each.parameters(), lr=0.1) for each in (model, twin)]

    def run(network: Sequential, optimizer: SGD, x: tg.Tensor) -> tg.Tensor:
        loss = (network(x) ** 2).mean()
        if network.training:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss

    compiled = tg.jit(lambda x: run(model, optimizers[0], x))
    for training in (True, False, True):
        model.train(training), twin.train(training)
        for size in (8, 5):
            x = RANDOM.normal(size=(size, 3)).astype(np.float32)
            np.testing.assert_allclose(compiled(x).item(), run(twin, optimizers[1], x).item(), rtol=1e-5)
    assert compiled.stats().traces == 2
    for name, array in model.state_dict().items():
        np.testing.assert_allclose(array, twin.state_dict()[name], rtol=1e-4, atol=1e-6)
