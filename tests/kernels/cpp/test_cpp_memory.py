"""The CPU kernels read and write nothing beyond their tensors, and leave nothing of their results unwritten."""

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import guarded_memory


@pytest.mark.parametrize("side", ["before", "behind"])
def test_nothing_beyond_a_tensor_is_touched(side):
    """In a process of its own, which a touch of a protected page ends."""
    done = subprocess.run([sys.executable, guarded_memory.__file__, side], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


@pytest.mark.parametrize(("before", "offset"), [(False, 4 * 5), (True, -4)])
def test_a_touch_would_be_seen(before, offset):
    code = (
        "import ctypes, torch; from guarded_memory import guarded; "
        f"x = guarded((5,), torch.float32, 0, {before}); print(x.sum().item(), flush=True); "
        f"ctypes.c_float.from_address(x.data_ptr() + {offset}).value"
    )
    folder = Path(guarded_memory.__file__).parent
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.stdout == "0.0\n" and done.returncode != 0
