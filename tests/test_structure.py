"""The structure epoch moves when a module or an optimizer changes, and fingerprints say whether it matters."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tapegrad import structure
from tapegrad.models import SGD, Dropout, Linear, Module, Parameter, Sequential

CHANGES: dict[str, Callable[[Sequential], object]] = {
    "train and eval": lambda model: model.eval(),
    "a layer replaced": lambda model: model.register_module("0", Linear(2, 2)),
    "a layer added": lambda model: model.append(Linear(2, 2)),
    "a parameter replaced": lambda model: setattr(model[0], "bias", Parameter([0.0, 0.0])),
    "a parameter removed": lambda model: setattr(model[0], "bias", None),
    "a parameter frozen": lambda model: model.requires_grad_(False),
    "a plain attribute": lambda model: setattr(model[1], "p", 0.25),
    "a cast": lambda model: model.to("float64").register_buffer("marker", None),
}


def network() -> Sequential:
    return Sequential(Linear(2, 2), Dropout(0.5))


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_moves_the_epoch_and_the_fingerprint(change: str) -> None:
    model = network()
    epoch, fingerprint = structure.epoch(), model.structure_fingerprint()
    CHANGES[change](model)
    assert structure.epoch() > epoch
    assert model.structure_fingerprint() != fingerprint


def test_going_back_gives_the_first_fingerprint() -> None:
    model = network()
    fingerprint = model.structure_fingerprint()
    assert model.eval().structure_fingerprint() != fingerprint
    assert model.train().structure_fingerprint() == fingerprint


def test_what_changes_nothing_moves_nothing() -> None:
    model = network()
    epoch = structure.epoch()
    model.train()
    model[1].p = model[1].p
    assert structure.epoch() == epoch


def test_an_optimizer_moves_it_where_a_term_appears_and_not_for_a_number() -> None:
    optimizer = SGD(network().parameters(), lr=0.1)
    epoch, fingerprint = structure.epoch(), optimizer.structure_fingerprint()
    optimizer.lr = 0.2
    assert structure.epoch() == epoch
    optimizer.momentum = 0.9
    assert structure.epoch() > epoch
    assert optimizer.structure_fingerprint() != fingerprint
    epoch, fingerprint = structure.epoch(), optimizer.structure_fingerprint()
    optimizer.momentum = 0.8
    assert (structure.epoch(), optimizer.structure_fingerprint()) == (epoch, fingerprint)


def test_fingerprints_are_hashable_whatever_attributes_hold() -> None:
    class Odd(Module):
        def __init__(self) -> None:
            self.table = {"a": [1, {2: 3.0}], "b": object()}

    assert hash(Odd().structure_fingerprint()) is not None
