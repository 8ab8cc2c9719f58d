"""Weights on disk: there and back, damage, and models that they do not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tapegrad.errors import DataError, StateError
from tapegrad.models import MLP, BatchNorm1d, Linear, Sequential, load_weights, save_weights


def network() -> Sequential:
    return Sequential(Linear(2, 3), BatchNorm1d(3), Linear(3, 1))


def test_weights_come_back_bit_for_bit(tmp_path: Path) -> None:
    model, other = network(), network()
    model(np.ones((4, 2)))
    path = save_weights(tmp_path / "deep" / "weights.npz", model)
    load_weights(path, other)
    assert other[1].num_batches_tracked.item() == 1
    for name, array in other.state_dict().items():
        np.testing.assert_array_equal(array, model.state_dict()[name])
    with np.load(path) as archive:
        assert archive["0.weight"].shape == (3, 2)
    assert [item.name for item in path.parent.iterdir()] == ["weights.npz"]


def _truncate(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _flip(content: bytes) -> bytes:
    # In the middle of the first array's numbers, which the archive's own checksum covers.
    place = content.index(b"\x93NUMPY") + 130
    return content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :]


@pytest.mark.parametrize(
    "damage", [_truncate, _flip, lambda content: b"", lambda content: b"no archive", lambda content: content[:100]]
)
def test_a_damaged_file_changes_nothing(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    model = network()
    path = save_weights(tmp_path / "weights.npz", network())
    path.write_bytes(damage(path.read_bytes()))
    before = model.state_dict()
    with pytest.raises(DataError, match=r"weights\.npz is not a whole weights file"):
        load_weights(path, model)
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_a_single_array_is_no_weights_file(tmp_path: Path) -> None:
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(DataError, match="a single array"):
        load_weights(tmp_path / "array.npy", network())


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no file .*nothing\.npz"):
        load_weights(tmp_path / "nothing.npz", network())


def test_shapes_that_do_not_fit_are_named_and_change_nothing(tmp_path: Path) -> None:
    path = save_weights(tmp_path / "weights.npz", MLP(2, [3], 1))
    model = MLP(2, [4], 1)
    before = model.state_dict()
    with pytest.raises(StateError, match=r"0\.weight has shape \(3, 2\) in the state and \(4, 2\) here"):
        load_weights(path, model)
    with pytest.raises(StateError, match="unknown 2.weight, 2.bias"):
        load_weights(path, MLP(2, [], 3))
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_weights(tmp_path / "weights.npz", network())
    before = path.read_bytes()

    def fail(*arguments: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="full"):
        save_weights(path, network())
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["weights.npz"]
