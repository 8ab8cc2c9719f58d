"""grad, value_and_grad, vjp, jvp: what they give, how they nest, and what they refuse."""

from __future__ import annotations

import gc
import math
import weakref
from typing import Any, NamedTuple

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.errors import AxisError, GradientError, ShapeError
from tapegrad.testing import check_grads

X = np.array([0.3, -1.2, 2.0])


def f(x: Any) -> Any:
    return (tg.tanh(x) * x * x).sum()


class Layer(NamedTuple):
    weight: Any
    bias: Any


class TestGrad:
    def test_of_arrays_tensors_numbers_and_lists(self) -> None:
        assert tg.grad(lambda x: x * x)(3.0).item() == 6.0
        for x in (np.array([1.0, 2.0]), tg.Tensor([1.0, 2.0]), [1.0, 2.0], tg.Tensor([1.0, 2.0], requires_grad=True)):
            assert tg.grad(lambda x: (x * x).sum())(x).tolist() == [2.0, 4.0]

    def test_has_the_dtype_of_the_argument(self) -> None:
        assert tg.grad(f)(X).dtype == np.float64
        assert tg.grad(f)(X.astype(np.float32)).dtype == np.float32
        assert tg.grad(f)(0.5).dtype == np.float32

    def test_of_several_arguments(self) -> None:
        g = lambda a, b, c: (a * b + c).sum()  # noqa: E731
        assert tg.grad(g, 1)(2.0, 3.0, 4.0).item() == 2.0
        assert tg.grad(g, -1)(2.0, 3.0, 4.0).item() == 1.0
        assert [part.item() for part in tg.grad(g, (1, 0))(2.0, 3.0, 4.0)] == [2.0, 3.0]
        assert [part.item() for part in tg.grad(g, [2])(2.0, 3.0, 4.0)] == [1.0]

    def test_keywords_and_other_arguments_are_constants(self) -> None:
        g = tg.grad(lambda x, names, scale=1.0: x * len(names) * scale)
        assert g(1.0, ["a", "b"], scale=3.0).item() == 6.0

    def test_of_nests(self) -> None:
        tree = {"first": [X, (X, X)], "second": Layer(X, np.array(2.0))}

        def g(tree: Any) -> Any:
            first, (second, third) = tree["first"]
            layer = tree["second"]
            return (first * second + 3 * third * layer.weight).sum() * layer.bias

        gradient = tg.grad(g)(tree)
        assert isinstance(gradient["second"], Layer) and isinstance(gradient["first"][1], tuple)
        np.testing.assert_allclose(gradient["first"][0], 2 * X)
        np.testing.assert_allclose(gradient["first"][1][1], 6 * X)
        assert gradient["second"].bias.item() == pytest.approx((X * X + 3 * X * X).sum())

    def test_what_is_not_used_has_the_gradient_zero(self) -> None:
        used, other = tg.grad(lambda a, b: a.sum(), (0, 1))(X, X)
        assert used.tolist() == [1.0] * 3 and other.tolist() == [0.0] * 3
        assert tg.grad(lambda x: 3.0)(X).tolist() == [0.0] * 3
        assert tg.grad(lambda x: tg.Tensor(X).sum())(X).tolist() == [0.0] * 3

    def test_the_same_value_in_two_places_is_two_variables(self) -> None:
        x = tg.Tensor(X)
        first, second = tg.grad(lambda a, b: (a * a * b).sum(), (0, 1))(x, x)
        np.testing.assert_allclose(first, 2 * X * X)
        np.testing.assert_allclose(second, X * X)

    def test_a_closure_over_the_argument_is_a_constant(self) -> None:
        x = tg.Tensor(X)
        np.testing.assert_allclose(tg.grad(lambda y: (x * y).sum())(x), X)

    def test_branches_may_read_values(self) -> None:
        g = tg.grad(lambda x: x * x if x.item() > 0 else -x)
        assert [g(2.0).item(), g(-2.0).item()] == [4.0, -1.0]

    def test_value_comes_along(self) -> None:
        value, gradient = tg.value_and_grad(lambda x: (x * x).sum())(X)
        assert value.item() == pytest.approx((X * X).sum())
        np.testing.assert_allclose(gradient, 2 * X)

    def test_works_inside_no_grad_and_leaves_it_on(self) -> None:
        with tg.no_grad():
            np.testing.assert_allclose(tg.grad(lambda x: (x * x).sum())(X), 2 * X)
            assert not tg.is_grad_enabled()

    def test_parts_that_are_cut_off(self) -> None:
        def g(x: Any) -> Any:
            with tg.no_grad():
                constant = x * x
            return (constant * x + tg.stop_gradient(x) * x + x.detach()).sum()

        np.testing.assert_allclose(tg.grad(g)(X), X * X + X)


class TestVjpAndJvp:
    def test_several_results(self) -> None:
        value, pullback = tg.vjp(lambda a, b: {"sum": a + b, "product": a * b}, X, X[::-1].copy())
        np.testing.assert_allclose(value["product"], X * X[::-1])
        for _ in range(2):
            first, second = pullback({"sum": np.ones(3), "product": X})
            np.testing.assert_allclose(first, 1 + X * X[::-1])
            np.testing.assert_allclose(second, 1 + X * X)

    def test_tangents_of_nests(self) -> None:
        value, tangent = tg.jvp(
            lambda tree: (tree["a"] * tree["b"], tree["a"].sum()), ({"a": X, "b": X},), ({"a": X, "b": 2 * X},)
        )
        np.testing.assert_allclose(tangent[0], 3 * X * X)
        assert tangent[1].item() == pytest.approx(X.sum())
        np.testing.assert_allclose(value[0], X * X)

    def test_integer_results_carry_nothing(self) -> None:
        value, pullback = tg.vjp(lambda x: (x * 2, tg.argmax(x)), X)
        (gradient,) = pullback((np.ones(3), 0))
        assert gradient.tolist() == [2.0] * 3
        (_, index), (tangent, none) = tg.jvp(lambda x: (x * 2, tg.argmax(x)), (X,), (np.ones(3),))
        assert tangent.tolist() == [2.0] * 3 and index.item() == 2 and none.item() == 0
        assert tg.vjp(lambda x: tg.argmax(x), X)[1](0)[0].tolist() == [0.0] * 3

    def test_a_jacobian_by_rows_and_by_columns(self) -> None:
        g = lambda x: tg.concatenate([x * x, tg.sin(x[:1]) * x[1:2]])  # noqa: E731
        _, pullback = tg.vjp(g, X)
        rows = np.stack([pullback(row)[0].numpy() for row in np.eye(4)])
        columns = np.stack([tg.jvp(g, (X,), (column,))[1].numpy() for column in np.eye(3)], axis=1)
        np.testing.assert_allclose(rows, columns, atol=1e-15)


class TestNesting:
    direction = np.array([1.0, -2.0, 0.5])

    def test_all_orders_of_second_derivatives_agree(self) -> None:
        v = self.direction
        along = lambda x: tg.jvp(f, (x,), (v,))[1]  # noqa: E731
        found = [
            tg.jvp(tg.grad(f), (X,), (v,))[1],
            tg.grad(along)(X),
            tg.grad(lambda x: (tg.grad(f)(x) * v).sum())(X),
            tg.vjp(tg.grad(f), X)[1](v)[0],
        ]
        for other in found[1:]:
            np.testing.assert_allclose(other, found[0], rtol=1e-12)
        assert tg.jvp(along, (X,), (v,))[1].item() == pytest.approx((found[0].numpy() * v).sum())

    def test_high_orders(self) -> None:
        derivative = tg.sin
        for order in range(1, 7):
            derivative = tg.grad(derivative)
            assert derivative(0.7).item() == pytest.approx(math.sin(0.7 + order * math.pi / 2), rel=1e-5)

    def test_inner_and_outer_variables_are_not_confused(self) -> None:
        # d/dx (x * d/dy (x + y) at y = 1) is 1.
        assert tg.grad(lambda x: x * tg.grad(lambda y: x + y)(1.0))(1.0).item() == 1.0
        tangent = tg.jvp(lambda x: x * tg.jvp(lambda y: x + y, (1.0,), (1.0,))[1], (1.0,), (1.0,))[1]
        assert tangent.item() == 1.0

    def test_cotangents_are_differentiated_too(self) -> None:
        g = tg.grad(lambda c: (tg.vjp(tg.sin, X)[1](c)[0] * X).sum())
        np.testing.assert_allclose(g(np.ones(3)), np.cos(X) * X)

    def test_under_jit(self) -> None:
        hessian_vector = tg.jit(lambda x, v: tg.jvp(tg.grad(f), (x,), (v,))[1])
        for n in (3, 1, 2):
            x, v = X[:n].copy(), self.direction[:n].copy()
            np.testing.assert_allclose(hessian_vector(x, v), tg.jvp(tg.grad(f), (x,), (v,))[1], rtol=1e-12)
        assert hessian_vector.stats().traces == 1

    def test_of_a_jitted_function(self) -> None:
        jitted = tg.jit(f)
        np.testing.assert_allclose(tg.grad(jitted)(X), tg.grad(f)(X))
        np.testing.assert_allclose(
            tg.grad(lambda tree: jitted(tree["x"]) * 2)({"x": X})["x"], 2 * tg.grad(f)(X).numpy()
        )
        np.testing.assert_allclose(tg.jvp(jitted, (X,), (X,))[1], tg.jvp(f, (X,), (X,))[1])
        assert jitted.stats().calls == 0

    def test_with_backward(self) -> None:
        w = tg.Tensor(X, requires_grad=True)
        penalty = (tg.grad(lambda x: (x * x * w).sum())(X) ** 2).sum()
        penalty.backward()
        np.testing.assert_allclose(w.grad, 8 * X * X * X)

    def test_a_network_twice(self) -> None:
        weight = np.linspace(-1, 1, 12).reshape(3, 4)
        check_grads(lambda x, w: tg.log_softmax(tg.tanh(x @ w)), np.outer([1.0, 0.5], X), weight, order=2)


class TestWhatIsKept:
    def test_results_require_a_gradient_only_where_one_can_be_asked_for(self) -> None:
        w = tg.Tensor(X, requires_grad=True)
        assert not tg.grad(f)(X).requires_grad
        assert not tg.value_and_grad(f)(X)[0].requires_grad
        assert not tg.jvp(f, (X,), (X,))[1].requires_grad
        assert tg.grad(f)(w).requires_grad
        assert tg.grad(lambda x: (x * x * w).sum())(X).requires_grad
        with tg.no_grad():
            assert not tg.grad(f)(w).requires_grad

    def test_history_is_let_go(self) -> None:
        x = tg.Tensor(X)
        source = weakref.ref(x._entry)
        gradient = tg.grad(f)(x)
        gradient.numpy()
        del x
        gc.collect()
        assert source() is None


class TestRefused:
    def test_functions(self) -> None:
        with pytest.raises(GradientError, match=r"the function gives shape \(3,\), not a scalar"):
            tg.grad(lambda x: x * 2)(X)
        with pytest.raises(GradientError, match="the function gives dtype int64"):
            tg.grad(tg.argmax)(X)
        with pytest.raises(GradientError, match="must give one scalar Tensor, not tuple"):
            tg.grad(lambda x: (x.sum(), x))(X)
        with pytest.raises(GradientError, match="must give one scalar Tensor, not NoneType"):
            tg.grad(lambda x: None)(X)

    def test_arguments(self) -> None:
        with pytest.raises(GradientError, match="grad: an argument has dtype int64"):
            tg.grad(lambda x: x * 2.0)(3)
        with pytest.raises(GradientError, match="jvp: an argument has dtype bool"):
            tg.jvp(lambda x: x, (np.array(True),), (np.array(True),))
        with pytest.raises(AxisError, match="argnums names argument 1, but 1 are given"):
            tg.grad(f, 1)(X)

    def test_tangents_and_cotangents(self) -> None:
        with pytest.raises(ShapeError, match="jvp: 1 primals and 2 tangents"):
            tg.jvp(f, (X,), (X, X))
        with pytest.raises(ShapeError, match=r"jvp: a tangent of shape \(2,\) belongs to a value of shape \(3,\)"):
            tg.jvp(f, (X,), (X[:2],))
        with pytest.raises(ShapeError, match="jvp: the tangent has other lists"):
            tg.jvp(lambda t: t["a"], ({"a": X},), ({"b": X},))
        with pytest.raises(ShapeError, match=r"vjp: a cotangent of shape \(\) belongs to a value of shape \(3,\)"):
            tg.vjp(lambda x: x * 2, X)[1](1.0)
        with pytest.raises(ShapeError, match="vjp: the cotangent has other lists"):
            tg.vjp(lambda x: (x, x), X)[1]([X, X])
