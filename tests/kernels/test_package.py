"""The package as a whole: what it needs, and what it offers."""

import subprocess
import sys

import fma_kernels


def test_every_public_name_is_there_and_documented():
    for name in fma_kernels.__all__:
        assert getattr(fma_kernels, name) is not None
        if callable(getattr(fma_kernels, name)):
            assert getattr(fma_kernels, name).__doc__, name


def test_the_library_needs_torch_alone_and_not_its_compiler():
    """PyTorch's compiler takes longer to import than the library and the rest of PyTorch."""
    code = (
        "import sys, fma_kernels; "
        "print(sorted({'torch._dynamo', 'mmengine', 'mmcv', 'mmpretrain', 'mmseg', 'fairseq', 'matplotlib', "
        "'sklearn'} & {*sys.modules}))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
