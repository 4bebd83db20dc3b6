"""The package as a whole: what it needs, and what it offers."""

import subprocess
import sys

import fma_kernels


def test_every_public_name_is_there_and_documented():
    for name in fma_kernels.__all__:
        assert getattr(fma_kernels, name) is not None
        if callable(getattr(fma_kernels, name)):
            assert getattr(fma_kernels, name).__doc__, name


def test_the_library_needs_torch_alone():
    code = (
        "import sys, fma_kernels; "
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'mmengine', 'mmcv', 'mmpretrain', 'mmseg', "
        "'fairseq', 'matplotlib', 'sklearn'}))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
