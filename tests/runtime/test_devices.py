"""Devices by name: which there are, where an array lies, and how it comes to lie elsewhere."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from tapegrad.errors import DeviceError
from tapegrad.runtime import cuda_errors, devices
from tapegrad.runtime.gpu import CudaDevice

X = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.mark.parametrize(("name", "meaning"), [("cpu", "cpu"), ("cuda", "cuda:0"), ("cuda:0", "cuda:0")])
def test_names(name: str, meaning: str) -> None:
    assert devices.canonical(name) == meaning


@pytest.mark.parametrize("name", ["cuda:1", "gpu", "", "CUDA", None, ["cpu"]])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(DeviceError, match="is unknown: there are 'cpu' and 'cuda'"):
        devices.canonical(name)


def test_the_host_is_no_cuda_device() -> None:
    with pytest.raises(DeviceError, match="'cpu' is no CUDA device"):
        devices.device("cpu")


class TestArrays:
    def test_lie_where_they_were_made(self, cuda: CudaDevice) -> None:
        assert devices.location(X) == devices.location([1.0]) == devices.location(np.float32(1)) == "cpu"
        assert devices.location(cuda.from_host(X)) == "cuda:0"
        assert devices.location(devices.empty((2, 3), X.dtype, "cuda")) == "cuda:0"
        assert devices.location(devices.empty((2, 3), X.dtype, "cpu")) == "cpu"

    def test_move(self, cuda: CudaDevice) -> None:
        there = devices.moved(X, "cuda")
        assert devices.location(there) == "cuda:0"
        back = devices.moved(there, "cpu")
        assert devices.location(back) == "cpu"
        np.testing.assert_array_equal(back, X)
        np.testing.assert_array_equal(devices.to_host(there), X)

    def test_stay_where_they_are(self, cuda: CudaDevice) -> None:
        there = cuda.from_host(X)
        assert devices.moved(there, "cuda:0") is there
        assert devices.moved(X, "cpu") is X

    def test_every_layout_moves(self, cuda: CudaDevice) -> None:
        for array in (
            X.T,
            X[:, ::2],
            X[::-1],
            np.float64(2).reshape(()),
            np.empty((0, 4)),
            np.broadcast_to(X[0], (4, 3)),
        ):
            np.testing.assert_array_equal(devices.to_host(devices.moved(array, "cuda")), array)


def test_what_a_name_means_can_be_replaced(cuda: CudaDevice) -> None:
    assert devices.device("cuda") is devices.device("cuda:0") is cuda
    assert devices.register("cuda", None) is cuda
    assert devices.register("cuda", cuda) is None


def test_the_gpu_is_looked_for_once_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise DeviceError("no CuPy here")

    monkeypatch.setattr(cuda_errors, "import_cupy", refuse)
    before = devices.register("cuda", None)
    try:
        with pytest.raises(DeviceError, match="no CuPy here"):
            devices.moved(X, "cuda")
        with pytest.raises(DeviceError, match="no CuPy here"):
            devices.empty((2,), X.dtype, "cuda")
    finally:
        devices.register("cuda", before)


def test_arrays_on_the_host_ask_for_no_cupy() -> None:
    code = "import sys; from tapegrad.runtime import devices; import numpy as np; x = np.ones(3); "
    code += "devices.moved(x, 'cpu'), devices.to_host(x), devices.location(x), devices.empty((3,), x.dtype, 'cpu'); "
    code += "print('cupy' in sys.modules, 'tapegrad.runtime.gpu' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False"]
