"""Layers against NumPy, and what they refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.errors import OptionError, ShapeError
from tapegrad.models import MLP, Dropout, Flatten, Identity, Linear, ReLU, Sequential, summary
from tapegrad.models.activations import ACTIVATIONS, make_activation


def test_linear_is_x_times_weight_transposed_plus_bias() -> None:
    layer = Linear(3, 2, dtype="float64")
    x = np.arange(12.0).reshape(2, 2, 3)
    expected = x @ layer.weight.numpy().T + layer.bias.numpy()
    np.testing.assert_allclose(layer(x).numpy(), expected, rtol=1e-14)
    np.testing.assert_allclose(layer(x[0, 0]).numpy(), expected[0, 0], rtol=1e-14)


def test_linear_without_bias_has_none() -> None:
    layer = Linear(3, 2, bias=False)
    assert layer.bias is None
    assert list(layer.state_dict()) == ["weight"]
    assert layer(np.zeros((1, 3))).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("shape", [(5, 2), (3, 4), (), (4,)])
def test_linear_names_shapes_that_do_not_fit(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"Linear\(3, 1\): the input has shape .* last axis must be in_features = 3"):
        Linear(3, 1)(np.zeros(shape))


def test_first_weights_lie_within_one_over_the_root_of_the_inputs() -> None:
    tg.manual_seed(0)
    layer = Linear(100, 50)
    for values in (layer.weight.numpy(), layer.bias.numpy()):
        assert 0.05 < np.abs(values).max() <= 0.1


def test_the_seed_decides_the_first_weights() -> None:
    tg.manual_seed(3)
    first = Linear(4, 4).weight.numpy()
    tg.manual_seed(3)
    np.testing.assert_array_equal(Linear(4, 4).weight.numpy(), first)
    assert not np.array_equal(Linear(4, 4).weight.numpy(), first)


def test_dropout_zeroes_some_and_scales_the_rest_only_while_training() -> None:
    tg.manual_seed(0)
    layer = Dropout(0.25)
    out = layer(np.ones((100, 100), np.float32)).numpy()
    assert set(np.unique(out)) == {np.float32(0), np.float32(4 / 3)}
    assert 0.73 < (out > 0).mean() < 0.77
    assert not np.array_equal(out, layer(np.ones((100, 100), np.float32)).numpy())
    assert (layer.eval()(np.ones(100)).numpy() == 1).all()
    assert (Dropout(0.0)(np.ones(100)).numpy() == 1).all()
    assert (Dropout(1.0)(np.ones(100)).numpy() == 0).all()


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_dropout_wants_a_probability(p: float) -> None:
    with pytest.raises(OptionError, match="between 0 and 1"):
        Dropout(p)


def test_flatten_joins_axes() -> None:
    x = np.arange(24).reshape(2, 3, 4)
    np.testing.assert_array_equal(Flatten()(x).numpy(), x.reshape(2, 12))
    np.testing.assert_array_equal(Flatten(0, 1)(x).numpy(), x.reshape(6, 4))
    with pytest.raises(ShapeError, match="Flatten"):
        Flatten()(np.zeros(3))


def test_sequential_indexes_slices_and_grows() -> None:
    model = Sequential(Linear(2, 2), ReLU())
    assert len(model.append(Linear(2, 1))) == 3
    assert isinstance(model[-1], Linear)
    assert [type(module) for module in model[:2]] == [Linear, ReLU]
    assert model(np.zeros((4, 2))).shape == (4, 1)


SCALAR_REFERENCES = {
    "identity": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "elu": lambda x: np.where(x > 0, x, np.expm1(x)),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "softplus": lambda x: np.logaddexp(x, 0),
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "gelu": lambda x: x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    "softmax": lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True),
    "log_softmax": lambda x: x - np.log(np.exp(x).sum(-1, keepdims=True)),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_their_formulas(name: str) -> None:
    x = np.linspace(-3, 3, 14).reshape(2, 7)
    np.testing.assert_allclose(make_activation(name)(x).numpy(), SCALAR_REFERENCES[name](x), rtol=1e-12, atol=1e-15)


def test_an_unknown_activation_lists_those_there_are() -> None:
    with pytest.raises(OptionError, match="no activation is called 'rely'; there are identity, relu"):
        make_activation("rely")


def test_identity_takes_any_arguments() -> None:
    assert Identity(54, unused=True)(tg.Tensor([1.0])).tolist() == [1.0]


def test_mlp_has_the_parameters_of_the_tutorial() -> None:
    model = MLP(784, [32, 64, 128, 64], 10)
    assert len(list(model.parameters())) == 10
    assert sum(parameter.size for parameter in model.parameters()) == 44_458


def test_mlp_takes_one_activation_for_each_layer() -> None:
    model = MLP(4, [6, 4, 3], 1, activation=["sigmoid", "tanh", "relu"], output_activation="sigmoid")
    kinds = [type(module).__name__ for module in model]
    assert kinds == ["Linear", "Sigmoid", "Linear", "Tanh", "Linear", "ReLU", "Linear", "Sigmoid"]
    with pytest.raises(OptionError, match="2 activations for 3 hidden layers"):
        MLP(4, [6, 4, 3], 1, activation=["relu", "tanh"])


def test_mlp_of_no_hidden_layer_is_linear_and_one_width_may_be_a_number() -> None:
    assert len(MLP(4, [], 1)) == 1
    assert MLP(4, 8, 1)[0].out_features == 8


def test_the_table_of_layers_counts_everything() -> None:
    text = summary(Sequential(Flatten(), MLP(4, [3], 2, dtype="float64"), Dropout()))
    assert text.splitlines()[0] == "Sequential: 23 parameters, float64"
    assert [line.split()[0] for line in text.splitlines()[1:]] == ["layer", "0", "1.0", "1.1", "1.2", "2"]
    assert str(MLP(4, [3], 2)) == MLP(4, [3], 2).summary()


@pytest.mark.parametrize("sizes", [(64, 1, 2, 7), (7, 2, 1, 64)])
def test_one_program_serves_every_batch(sizes: tuple[int, ...]) -> None:
    model = MLP(5, [7], 3)
    forward = tg.jit(lambda x: model(x))
    for size in sizes:
        x = np.random.default_rng(size).normal(size=(size, 5)).astype(np.float32)
        np.testing.assert_allclose(forward(x).numpy(), model(x).numpy(), rtol=2e-6, atol=2e-7)
    assert forward.stats().traces == 1
