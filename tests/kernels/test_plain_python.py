"""The same kernels as plain Python: every test of this folder once more with the JIT disabled."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tapegrad.kernels.cpu.intrinsics import COMPILED


@pytest.mark.skipif(not COMPILED, reason="this is the run without the JIT")
def test_the_kernel_tests_pass_with_the_jit_disabled() -> None:
    folder = Path(__file__).parent
    environment = dict(os.environ, NUMBA_DISABLE_JIT="1")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-n", "0", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder.parents[1], check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
