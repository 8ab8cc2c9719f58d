"""Random numbers: what a seed decides, how they are spread, and that every draw counts."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

import tapegrad as tg
from tapegrad import execution
from tapegrad.errors import DTypeError, OptionError, ShapeError
from tapegrad.random import Generator
from tapegrad.runtime.counters import counters

DRAWS: dict[str, Any] = {
    "uniform": lambda g: g.uniform(-1.0, 2.0, (3, 2)),
    "uniform in float64": lambda g: g.uniform(size=5, dtype="float64"),
    "normal": lambda g: g.normal(1.0, 2.0, 7),
    "integers": lambda g: g.integers(3, 9, (2, 4)),
    "bernoulli": lambda g: g.bernoulli(0.3, 20),
    "permutation": lambda g: g.permutation(9),
    "rows": lambda g: g.permutation(np.arange(12.0).reshape(6, 2)),
    "dropout": lambda g: tg.dropout(np.ones(20), 0.5, generator=g),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
class TestStreams:
    def test_a_seed_decides(self, draw: Any) -> None:
        first, again, other = (draw(Generator(seed)).tolist() for seed in (3, 3, 4))
        assert first == again != other

    def test_every_draw_is_new(self, draw: Any) -> None:
        generator = Generator(3)
        drawn = [draw(generator) for _ in range(3)]
        assert generator.get_state() == (3, 3)
        values = [one.tolist() for one in drawn]
        assert values[0] != values[1] != values[2] != values[0]

    def test_compiled_draws_are_the_interpreted_ones(self, draw: Any) -> None:
        inside, outside = Generator(5), Generator(5)
        step = tg.jit(lambda: (draw(inside), draw(inside)))
        compiled = [part.numpy() for _ in range(3) for part in step()]
        for result in compiled:
            np.testing.assert_allclose(result, draw(outside).numpy(), rtol=1e-5, atol=1e-6)
        assert step.stats().traces == 1
        assert inside.get_state() == outside.get_state() == (5, 6)

    def test_draws_of_a_loop_are_one_tape(self, draw: Any) -> None:
        generator = Generator(0)
        execution.forget()
        before = counters["tapes"]
        for _ in range(5):
            draw(generator).numpy()
        assert counters["tapes"] - before == 1


class TestGenerator:
    def test_the_default_one_is_seeded_for_all(self) -> None:
        tg.manual_seed(11)
        first = tg.random.uniform(size=3).tolist()
        tg.random.normal(size=3)
        tg.manual_seed(11)
        assert tg.random.uniform(size=3).tolist() == first
        assert tg.random.default_generator().get_state() == (11, 1)

    def test_seeding_reaches_programs_that_are_compiled(self) -> None:
        step = tg.jit(lambda: tg.random.uniform(size=3))
        tg.manual_seed(1)
        first = [step().tolist(), step().tolist()]
        tg.manual_seed(1)
        assert [step().tolist(), tg.random.uniform(size=3).tolist()] == first
        assert step.stats().traces == 1

    def test_without_a_seed_streams_differ(self) -> None:
        assert Generator().get_state() != Generator().get_state()

    def test_a_state_can_be_taken_up(self) -> None:
        generator = Generator(2)
        generator.uniform()
        state = generator.get_state()
        wanted = generator.uniform(size=3).tolist()
        for other in (Generator(9), copy.deepcopy(generator), pickle.loads(pickle.dumps(generator))):
            other.set_state(state)
            assert other.uniform(size=3).tolist() == wanted

    def test_recorded_draws_are_not_changed_by_seeding(self) -> None:
        generator = Generator(2)
        pending = generator.uniform(size=3)
        generator.manual_seed(7)
        assert pending.tolist() == Generator(2).uniform(size=3).tolist()

    def test_the_seed_may_be_any_of_63_bits(self) -> None:
        assert Generator(2**63 - 1).uniform().item() != Generator(0).uniform().item()
        for seed in (-1, 2**63):
            with pytest.raises(OptionError, match="a seed is a whole number from 0 to"):
                Generator(seed)


class TestDistributions:
    count = 200_000

    @pytest.fixture
    def generator(self) -> Generator:
        return Generator(1234)

    def test_uniform(self, generator: Generator) -> None:
        x = generator.uniform(-1.0, 3.0, self.count).numpy()
        assert x.dtype == np.float32 and x.min() >= -1 and x.max() <= 3
        share = np.histogram(x, 16, (-1, 3))[0] / self.count
        np.testing.assert_allclose(share, 1 / 16, atol=5 * np.sqrt(1 / 16 / self.count))

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_normal(self, generator: Generator, dtype: str) -> None:
        x = generator.normal(size=self.count, dtype=dtype).numpy().astype(np.float64)
        error = 5 / np.sqrt(self.count)
        assert np.isfinite(x).all()
        assert abs(x.mean()) < error
        assert abs(x.var() - 1) < error * np.sqrt(2)
        assert abs((x**3).mean()) < error * np.sqrt(15)
        assert abs((x**4).mean() - 3) < error * np.sqrt(96)
        within = [(np.abs(x) < bound).mean() for bound in (1, 2, 3)]
        np.testing.assert_allclose(within, [0.6827, 0.9545, 0.9973], atol=error)

    def test_neighbours_are_independent(self, generator: Generator) -> None:
        x, y = (generator.normal(size=self.count).numpy().astype(np.float64) for _ in range(2))
        for first, second in ((x[1:], x[:-1]), (x, y)):
            assert abs(np.corrcoef(first, second)[0, 1]) < 5 / np.sqrt(self.count)

    def test_integers(self, generator: Generator) -> None:
        x = generator.integers(-2, 5, self.count).numpy()
        assert x.dtype == np.int64 and set(x) == set(range(-2, 5))
        np.testing.assert_allclose(np.bincount(x + 2) / self.count, 1 / 7, atol=5 * np.sqrt(1 / 7 / self.count))
        assert set(generator.integers(3, size=100).tolist()) == {0, 1, 2}

    def test_permutations(self, generator: Generator) -> None:
        orders = np.array([generator.permutation(4).numpy() for _ in range(600)])
        assert (np.sort(orders, axis=1) == np.arange(4)).all()
        assert len({tuple(order) for order in orders}) == 24
        np.testing.assert_allclose((orders == 0).mean(axis=0), 0.25, atol=0.1)

    def test_dropout(self, generator: Generator) -> None:
        x = np.arange(1, self.count + 1, dtype=np.float64)
        y = tg.dropout(x, 0.25, generator=generator).numpy()
        kept = y != 0
        assert abs(kept.mean() - 0.75) < 5 * np.sqrt(0.1875 / self.count)
        np.testing.assert_allclose(y[kept], x[kept] / 0.75)

    def test_dropout_passes_the_gradient_of_what_it_keeps(self, generator: Generator) -> None:
        value, gradient = tg.value_and_grad(lambda x: tg.dropout(x, 0.5, generator=generator).sum())(np.ones(50))
        assert set(gradient.tolist()) == {0.0, 2.0}
        assert gradient.sum().item() == value.item()


class TestParameters:
    def test_shapes_broadcast(self) -> None:
        generator = Generator(0)
        assert generator.uniform([0.0, 1.0], [[1.0], [2.0]]).shape == (2, 2)
        assert generator.normal([0.0, 1.0], 1.0, (3, 2)).shape == (3, 2)
        assert generator.uniform().shape == ()
        assert generator.uniform(0.0, 1.0, (0, 2)).shape == (0, 2)

    def test_gradients_reach_the_parameters(self) -> None:
        def f(loc: tg.Tensor, scale: tg.Tensor) -> tg.Tensor:
            return Generator(0).normal(loc, scale, 3).sum()

        loc, scale = tg.grad(f, (0, 1))(1.0, 2.0)
        assert loc.item() == 3.0
        assert scale.item() == pytest.approx(Generator(0).normal(size=3).sum().item(), rel=1e-5)

    def test_sizes_of_the_program(self) -> None:
        step = tg.jit(lambda x: (tg.random.uniform(size=x.shape), tg.random.permutation(x.shape[0])))
        for n in (3, 1, 5):
            noise, order = step(np.ones((n, 2), np.float32))
            assert noise.shape == (n, 2) and sorted(order.tolist()) == list(range(n))
        assert step.stats().traces == 1

    def test_wrong_ones(self) -> None:
        generator = Generator(0)
        with pytest.raises(DTypeError, match="uniform: needs a floating dtype"):
            generator.uniform(dtype="int64")
        with pytest.raises(ShapeError, match=r"normal: parameters of shape \(2,\) do not fit the size \(1,\)"):
            generator.normal([0.0, 1.0], size=1)
        with pytest.raises(ShapeError, match="has a negative number"):
            generator.uniform(size=-1)
        with pytest.raises(OptionError, match="integers: the range from 3 to 3"):
            generator.integers(3, 3)
        with pytest.raises(ShapeError, match="permutation: a scalar Tensor has no rows"):
            generator.permutation(tg.Tensor(3.0))
        with pytest.raises(ShapeError, match="permutation: there are no -1 numbers"):
            generator.permutation(-1)
        with pytest.raises(OptionError, match="dropout: p is a probability"):
            tg.dropout([1.0], -0.1)
        assert generator.get_state() == (0, 0)
