"""NVRTC without a GPU: what it compiles for, machine code and PTX, and what it says of a faulty source."""

from __future__ import annotations

import pytest

from tapegrad.errors import DeviceError
from tapegrad.kernels.cuda import strided_copy
from tapegrad.runtime import nvrtc

pytestmark = [
    pytest.mark.nvrtc,
    pytest.mark.skipif(nvrtc.library() is None, reason="NVRTC is not installed: pip install nvidia-cuda-nvrtc"),
]
SOURCE = 'extern "C" __global__ void set(float* x) { *x = 1.0f; }'


@pytest.mark.parametrize(
    ("known", "capability", "target"),
    [
        ((75, 80, 90), 90, "sm_90"),
        ((75, 80, 90), 86, "sm_80"),
        ((75, 80, 90), 89, "sm_80"),
        ((75, 80, 90), 100, "compute_90"),
        ((75, 80, 90, 100, 103), 101, "sm_100"),
    ],
)
def test_the_nearest_target_is_taken(
    monkeypatch: pytest.MonkeyPatch, known: tuple[int, ...], capability: int, target: str
) -> None:
    monkeypatch.setattr(nvrtc, "architectures", lambda: known)
    assert nvrtc.target(capability) == target


def test_a_gpu_that_is_too_old_is_refused() -> None:
    with pytest.raises(
        DeviceError, match=r"capability 3.5 is too old for NVRTC .*pip install 'tapegrad\[gpu-cuda12\]'"
    ):
        nvrtc.target(35)


def test_every_known_gpu_has_machine_code_of_its_own() -> None:
    for capability in (nvrtc.architectures()[0], nvrtc.architectures()[-1]):
        assert nvrtc.target(capability) == f"sm_{capability}"
        assert nvrtc.compile_source(SOURCE, f"sm_{capability}").cubin.startswith(b"\x7fELF")


def test_a_later_gpu_is_given_ptx() -> None:
    target = nvrtc.target(999)
    assert target == f"compute_{nvrtc.architectures()[-1]}"
    assert f".target sm_{nvrtc.architectures()[-1]}".encode() in nvrtc.compile_source(SOURCE, target).cubin


def test_a_faulty_source_is_shown_with_the_compilers_words() -> None:
    with pytest.raises(DeviceError, match=r'faulty.cu\(1\): error: identifier "y" is undefined'):
        nvrtc.compile_source(SOURCE.replace("*x =", "*y ="), "sm_90", name="faulty.cu")


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
def test_strided_copies_compile_without_a_warning_or_a_spill(architecture: str) -> None:
    compiled = nvrtc.compile_source(strided_copy.SOURCE, architecture, ["--ptxas-options=-v"])
    assert "warning" not in compiled.log
    assert compiled.log.count(" 0 bytes spill stores, 0 bytes spill loads") == 4


def test_its_identity_names_version_and_options() -> None:
    major, minor = nvrtc.version()
    assert nvrtc.identity().startswith(f"NVRTC {major}.{minor} ") and "--fmad=true" in nvrtc.identity()
