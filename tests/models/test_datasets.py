"""Data sets: what they hold, that a seed fixes them, and what is said about files that are wrong."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tapegrad.errors import DataError, DTypeError, OptionError, ShapeError
from tapegrad.models import data
from tapegrad.models.data import DataLoader, Dataset, download, mnist_files
from tapegrad.models.files import write_atomic

# Generated sets


@pytest.mark.parametrize(
    "generate",
    [
        lambda seed: data.xor(50, noise=0.1, seed=seed),
        lambda seed: data.quadrants(50, seed=seed),
        lambda seed: data.moons(50, seed=seed),
        lambda seed: data.regression(50, seed=seed),
        lambda seed: data.classification(50, seed=seed),
    ],
    ids=["xor", "quadrants", "moons", "regression", "classification"],
)
def test_a_seed_fixes_a_generated_set(generate: Any) -> None:
    x, y = generate(3)
    again_x, again_y = generate(3)
    other_x, _ = generate(4)
    assert np.array_equal(x, again_x) and np.array_equal(y, again_y)
    assert not np.array_equal(x, other_x)
    assert x.dtype == np.float32 and x.shape[0] == y.shape[0] == 50 and y.ndim == 1


def test_xor_without_noise_is_the_truth_table() -> None:
    x, y = data.xor()
    assert x.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]] and y.tolist() == [0, 1, 1, 0]
    assert y.dtype == np.int64


def test_xor_noise_is_uniform_from_zero_to_its_end() -> None:
    x, y = data.xor(4000, noise=0.1, seed=1)
    moved = x - np.floor(x)
    assert 0 <= moved.min() and moved.max() < 0.1 and abs(moved.mean() - 0.05) < 0.002
    assert np.array_equal(np.floor(x[:, 0]) != np.floor(x[:, 1]), y == 1)


def test_quadrants_are_labelled_by_parity() -> None:
    x, y = data.quadrants(400, seed=2)
    assert np.array_equal(y == 1, x[:, 0] * x[:, 1] < 0)
    assert 150 < y.sum() < 250


def test_moons_without_noise_lie_on_two_half_circles() -> None:
    x, y = data.moons(200, noise=0.0)
    upper, lower = x[y == 0], x[y == 1]
    assert np.allclose(np.hypot(upper[:, 0], upper[:, 1]), 1, atol=1e-6) and upper[:, 1].min() >= 0
    assert np.allclose(np.hypot(lower[:, 0] - 1, lower[:, 1] - 0.5), 1, atol=1e-6) and lower[:, 1].max() <= 0.5


def test_regression_without_noise_is_linear_in_its_informative_features() -> None:
    x, y = data.regression(100, features=5, informative=2, noise=0.0, seed=3)
    weights, *_ = np.linalg.lstsq(x.astype(np.float64), y.astype(np.float64), rcond=None)
    assert np.allclose(x @ weights, y, atol=1e-5)
    assert (np.abs(weights) > 1e-4).sum() == 2


def test_redundant_features_add_no_rank() -> None:
    x, _ = data.classification(200, features=6, informative=3, redundant=3, seed=1)
    assert np.linalg.matrix_rank(x.astype(np.float64), tol=1e-3) == 3


def test_separated_clusters_are_told_apart_by_their_corner() -> None:
    x, y = data.classification(300, features=2, informative=2, classes=3, separation=20.0, flip=0.0, seed=5)
    corners = {tuple(corner) for corner in np.sign(x).tolist()}
    assert len(corners) == 3
    assert all(len(set(y[(np.sign(x) == corner).all(axis=1)])) == 1 for corner in corners)


def test_flipped_labels_are_drawn_anew() -> None:
    options = dict(samples=1000, separation=20.0, seed=6)
    _, clean = data.classification(flip=0.0, **options)  # type: ignore[arg-type]
    _, flipped = data.classification(flip=0.5, **options)  # type: ignore[arg-type]
    assert 150 < (clean != flipped).sum() < 350


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda: data.xor(0), "samples must be at least 1"),
        (lambda: data.xor(4, noise=-1), "noise must not be negative"),
        (lambda: data.moons(4, noise=-1), "noise must not be negative"),
        (lambda: data.regression(4, features=2, informative=3), "informative=3 must lie between 1 and features=2"),
        (lambda: data.classification(4, features=2, informative=2, redundant=1), "must fit into features=2"),
        (lambda: data.classification(4, informative=1, classes=3), "the 2 corners"),
        (lambda: data.classification(4, flip=2.0), "flip must lie between 0 and 1"),
        (lambda: data.load("cifar"), "no data set is called 'cifar'; there are xor, quadrants"),
    ],
)
def test_impossible_options_are_named(make: Any, says: str) -> None:
    with pytest.raises(OptionError, match=says):
        make()


# Splitting


def test_a_split_keeps_every_row_once() -> None:
    parts = data.split(np.arange(10)[:, None], np.arange(10), test_fraction=0.3, seed=1)
    assert len(parts.test_y) == 3
    assert sorted([*parts.train_y, *parts.test_y]) == list(range(10))
    assert np.array_equal(parts.train_x[:, 0], parts.train_y)


def test_a_stratified_split_shares_out_every_class() -> None:
    y = np.repeat([0, 1, 2], [70, 20, 10])
    parts = data.split(np.zeros((100, 1)), y, classes=("a", "b", "c"), test_fraction=0.25)
    assert np.bincount(parts.test_y).tolist() in ([17, 5, 3], [18, 5, 2])


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5])
def test_a_split_leaves_no_part_empty(fraction: float) -> None:
    with pytest.raises(OptionError, match="leaves one of the two parts empty"):
        data.split(np.zeros((4, 1)), np.zeros(4), test_fraction=fraction)


def test_rows_and_labels_must_agree() -> None:
    with pytest.raises(ShapeError, match=r"\(4, 1\) and y of shape \(3,\)"):
        data.split(np.zeros((4, 1)), np.zeros(3))
    with pytest.raises(DataError, match="train_x has 2 rows and train_y has 1"):
        Dataset("small", np.zeros((2, 1)), np.zeros(1), np.zeros((1, 1)), np.zeros(1))


# Digits


def test_digits_are_the_1797_images_of_the_test_set() -> None:
    parts = data.digits(seed=0)
    assert len(parts.train_x) + len(parts.test_x) == 1797 and parts.features == 64
    labels = np.concatenate([parts.train_y, parts.test_y])
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    everything = np.concatenate([parts.train_x, parts.test_x])
    assert everything.min() == 0 and everything.max() == 1 and everything.dtype == np.float32
    assert (everything * 16).sum(dtype=np.float64) == 561718


def test_the_digits_split_is_stratified_and_seeded() -> None:
    first, again, other = data.digits(seed=0), data.digits(seed=0), data.digits(seed=1)
    assert np.array_equal(first.test_x, again.test_x) and not np.array_equal(first.test_x, other.test_x)
    assert np.bincount(first.test_y).min() >= 34 and np.bincount(first.test_y).max() <= 37


@pytest.mark.parametrize("name", ["xor", "quadrants", "moons", "digits"])
def test_the_catalogue_loads_by_name(name: str) -> None:
    parts = data.load(name, seed=1)
    assert parts.name == name and set(parts.test_y.tolist()) == set(range(len(parts.classes)))


# IDX files


def idx(array: np.ndarray[Any, Any], code: int = 0x08) -> bytes:
    """The bytes of an IDX file."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["raw", "gzipped"])
@pytest.mark.parametrize(
    "code, dtype", [(0x08, "u1"), (0x09, "i1"), (0x0B, "i2"), (0x0C, "i4"), (0x0D, "f4"), (0x0E, "f8")]
)
def test_idx_files_are_read(tmp_path: Path, pack: Any, code: int, dtype: str) -> None:
    array = np.arange(12).reshape(2, 3, 2).astype(dtype)
    (tmp_path / "file").write_bytes(pack(idx(array, code)))
    found = data.read_idx(tmp_path / "file")
    assert np.array_equal(found, array) and found.dtype == np.dtype(dtype)


@pytest.mark.parametrize(
    "content, says",
    [
        (b"", "is no IDX file: it begins with nothing"),
        (b"PK\3\4 a zip", "is no IDX file: it begins with 50 4b 03 04"),
        (b"\0\0\7\1\0\0\0\0", "is no IDX file"),
        (idx(np.zeros((3, 2), np.uint8))[:9], "is incomplete: its header of 12 bytes ends after 9"),
        (idx(np.zeros((3, 2), np.uint8))[:-1], r"is incomplete: shape \(3, 2\) needs 18 bytes, and it has 17"),
        (idx(np.zeros((3, 2), np.uint8)) + b"?", r"is corrupt: shape \(3, 2\) needs 18 bytes, and it has 19"),
        (gzip.compress(idx(np.zeros(9, np.uint8)))[:-9], "is incomplete or corrupt"),
        (gzip.compress(b"x" * 99)[:-5] + b"12345", "is incomplete or corrupt"),
    ],
    ids=["empty", "zip", "type", "header", "short", "long", "gzip-short", "gzip-sum"],
)
def test_a_broken_idx_file_is_named(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "broken").write_bytes(content)
    with pytest.raises(DataError, match=says) as caught:
        data.read_idx(tmp_path / "broken")
    assert str(tmp_path / "broken") in str(caught.value)


def test_a_missing_idx_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read .*absent: No such file"):
        data.read_idx(tmp_path / "absent")


# MNIST


def write_small_mnist(folder: Path, suffix: str = ".gz", labels: int = 6) -> None:
    """Files of MNIST's names and format with six images of 2 x 2 in each part."""
    folder.mkdir(parents=True)
    pack = gzip.compress if suffix else bytes
    for part in ("train", "t10k"):
        images = np.arange(24, dtype=np.uint8).reshape(6, 2, 2) * 10
        (folder / f"{part}-images-idx3-ubyte{suffix}").write_bytes(pack(idx(images)))
        (folder / f"{part}-labels-idx1-ubyte{suffix}").write_bytes(pack(idx(np.arange(labels, dtype=np.uint8))))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let any download fail."""

    def refuse(address: str, timeout: float) -> io.BytesIO:
        raise OSError("no route")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


@pytest.mark.parametrize("suffix", [".gz", ""])
def test_mnist_is_found_in_the_data_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None, suffix: str
) -> None:
    write_small_mnist(tmp_path / "mnist", suffix)
    monkeypatch.setenv("TAPEGRAD_DATA", str(tmp_path))
    parts = data.load("mnist")
    assert parts.train_x.shape == (6, 4) and parts.train_x.dtype == np.float32
    assert np.allclose(parts.train_x[5], [200 / 255, 210 / 255, 220 / 255, 230 / 255])
    assert parts.test_y.tolist() == [0, 1, 2, 3, 4, 5] and parts.test_y.dtype == np.int64


def test_mnist_is_found_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None) -> None:
    write_small_mnist(tmp_path / "mnist")
    monkeypatch.delenv("TAPEGRAD_DATA", raising=False)
    monkeypatch.setenv("TAPEGRAD_CACHE", str(tmp_path))
    assert data.mnist().train_x.shape == (6, 4)


def test_a_missing_mnist_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_small_mnist(tmp_path / "mnist")
    (tmp_path / "mnist" / "t10k-labels-idx1-ubyte.gz").unlink()
    monkeypatch.setenv("TAPEGRAD_DATA", str(tmp_path))
    with pytest.raises(DataError, match="mnist holds no t10k-labels-idx1-ubyte.gz; put the MNIST files there"):
        data.mnist()


def test_labels_must_fit_the_images(tmp_path: Path) -> None:
    write_small_mnist(tmp_path / "five", labels=5)
    with pytest.raises(DataError, match=r"labels of shape \(5,\) for 6 images"):
        data.mnist(tmp_path / "five")
    write_small_mnist(tmp_path / "large")
    (tmp_path / "large" / "train-labels-idx1-ubyte.gz").write_bytes(idx(np.full(6, 10, np.uint8)))
    with pytest.raises(DataError, match="labels from 10 to 10, not from 0 to 9"):
        data.mnist(tmp_path / "large")


def test_images_must_be_images(tmp_path: Path) -> None:
    write_small_mnist(tmp_path / "mnist")
    (tmp_path / "mnist" / "train-images-idx3-ubyte.gz").write_bytes(idx(np.zeros(6, np.uint8)))
    with pytest.raises(DataError, match=r"holds uint8 of shape \(6,\), not uint8 of three axes"):
        data.mnist(tmp_path / "mnist")


def test_mnist_is_downloaded_into_the_cache_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_small_mnist(tmp_path / "mirror")
    asked: list[str] = []

    def serve(address: str, timeout: float) -> io.BytesIO:
        asked.append(address)
        if address.startswith(mnist_files.MIRRORS[0]):
            raise OSError("no route")
        return io.BytesIO((tmp_path / "mirror" / address.rsplit("/", 1)[1]).read_bytes())

    hashes = {
        name: hashlib.sha256(gzip.decompress((tmp_path / "mirror" / f"{name}.gz").read_bytes())).hexdigest()
        for name in mnist_files.FILES
    }
    monkeypatch.setattr(mnist_files, "FILES", hashes)
    monkeypatch.setattr(urllib.request, "urlopen", serve)
    monkeypatch.delenv("TAPEGRAD_DATA", raising=False)
    monkeypatch.setenv("TAPEGRAD_CACHE", str(tmp_path / "cache"))
    assert data.mnist().train_x.shape == (6, 4)
    assert len(asked) == 8
    assert sorted(path.name for path in (tmp_path / "cache" / "mnist").iterdir()) == sorted(
        f"{name}.gz" for name in hashes
    )
    assert data.mnist().train_x.shape == (6, 4) and len(asked) == 8


def test_a_wrong_download_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"https://one/": b"<html>", "https://two/": gzip.compress(b"data")[:-3]}
    monkeypatch.setattr(urllib.request, "urlopen", lambda address, timeout: io.BytesIO(answers[address]))
    with pytest.raises(DataError) as caught:
        download.fetch(list(answers), tmp_path / "file.gz", hashlib.sha256(b"data").hexdigest())
    assert "https://one/: its content has the SHA-256" in str(caught.value)
    assert "https://two/ is incomplete or corrupt" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_without_a_network_every_mirror_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None
) -> None:
    monkeypatch.delenv("TAPEGRAD_DATA", raising=False)
    monkeypatch.setenv("TAPEGRAD_CACHE", str(tmp_path))
    with pytest.raises(DataError, match="by hand") as caught:
        data.mnist()
    assert all(f"{mirror}train-images-idx3-ubyte.gz: no route" in str(caught.value) for mirror in mnist_files.MIRRORS)
    with pytest.raises(DataError, match="holds no train-images-idx3-ubyte.gz, train-labels"):
        data.mnist(download=False)


def test_the_real_mnist_where_there_is_one(mnist_data: Dataset) -> None:
    assert mnist_data.train_x.shape == (60_000, 784) and mnist_data.test_x.shape == (10_000, 784)
    assert np.bincount(mnist_data.train_y).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert mnist_data.train_x.max() == 1


# Writing files


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_atomic(tmp_path / "file", b"old")

    def fail(source: Path, target: Path) -> None:
        raise OSError("disk is full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk is full"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


# DataLoader


def test_a_loader_deals_out_every_row_in_order() -> None:
    x, y = np.arange(20).reshape(10, 2) / 2, np.arange(10)
    batches = list(DataLoader(x, y, batch_size=4))
    assert [len(labels) for _, labels in batches] == [4, 4, 2]
    assert np.array_equal(np.concatenate([rows for rows, _ in batches]), x)
    assert np.array_equal(np.concatenate([labels for _, labels in batches]), y)


@pytest.mark.parametrize(
    "rows, drop_last, batches", [(10, False, 3), (10, True, 2), (8, False, 2), (8, True, 2), (3, True, 0)]
)
def test_the_length_of_a_loader_is_its_number_of_batches(rows: int, drop_last: bool, batches: int) -> None:
    loader = DataLoader(np.zeros(rows), batch_size=4, drop_last=drop_last)
    assert len(loader) == batches == len(list(loader))


def test_every_epoch_has_an_order_of_its_own_and_a_seed_fixes_them() -> None:
    def orders(loader: DataLoader, epochs: int = 3) -> list[list[int]]:
        return [np.concatenate([rows for (rows,) in loader]).tolist() for _ in range(epochs)]

    rows = np.arange(50)
    first = orders(DataLoader(rows, batch_size=8, shuffle=True, seed=3))
    assert first == orders(DataLoader(rows, batch_size=8, shuffle=True, seed=3))
    assert first != orders(DataLoader(rows, batch_size=8, shuffle=True, seed=4))
    assert all(sorted(order) == list(range(50)) for order in first)
    assert first[0] != first[1] != first[2] != first[0]
    later = DataLoader(rows, batch_size=8, shuffle=True, seed=3)
    later.epoch = 2
    assert orders(later, 1) == first[2:]


def test_a_shuffled_loader_keeps_rows_together() -> None:
    loader = DataLoader(np.arange(30), np.arange(30) * 2, np.arange(30) * 3.0, batch_size=7, shuffle=True)
    assert all(np.array_equal(2 * a, b) and np.array_equal(3 * a, c) for a, b, c in loader)


def test_two_loops_at_once_do_not_disturb_each_other() -> None:
    loader = DataLoader(np.arange(6), batch_size=2)
    assert [(a.tolist(), b.tolist()) for (a,), (b,) in zip(loader, loader, strict=True)] == [
        ([0, 1], [0, 1]),
        ([2, 3], [2, 3]),
        ([4, 5], [4, 5]),
    ]


def test_a_loader_casts_once() -> None:
    loader = DataLoader(np.zeros((4, 2), order="F"), np.zeros(4, np.uint8), np.zeros(4, bool), batch_size=2)
    assert [array.dtype for array in loader.arrays] == [np.float32, np.int64, np.int64]
    assert all(array.flags.c_contiguous for array in loader.arrays)
    assert DataLoader([[0.5]], batch_size=1, dtype=np.float64).arrays[0].dtype == np.float64
    ready = np.zeros((4, 2), np.float32)
    assert DataLoader(ready, batch_size=2).arrays[0] is ready


@pytest.mark.parametrize(
    "make, error, says",
    [
        (lambda: DataLoader(np.zeros(3), batch_size=0), OptionError, "batch_size must be at least 1"),
        (lambda: DataLoader(np.zeros(3), batch_size=1, dtype=np.int32), OptionError, "float32 or float64, not int32"),
        (lambda: DataLoader(np.zeros(3), np.zeros(4), batch_size=1), ShapeError, "do not share their first axis"),
        (lambda: DataLoader(np.zeros(()), batch_size=1), ShapeError, "do not share their first axis"),
        (lambda: DataLoader(batch_size=1), ShapeError, "do not share their first axis"),
        (lambda: DataLoader(["a"], batch_size=1), DTypeError, "neither numbers nor bools"),
    ],
)
def test_a_loader_refuses_what_it_cannot_deal_out(make: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        make()
