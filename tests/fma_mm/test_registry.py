import subprocess
import sys

import mmpretrain.registry
import mmseg.registry
import pytest
from mmengine import registry as root
from mmengine.registry import DefaultScope

import fma_mm

ENTRIES = [
    ("MODELS", "FMA2D", dict(arch=dict(embed_dims=8, depths=(1,), num_heads=(1,)), patch_sizes=4, strides=4)),
    ("MODELS", "FMA2DAttention", dict(embed_dims=8, num_heads=2)),
    ("DATASETS", "HandwrittenDigits", dict(lazy_init=True)),
    ("METRICS", "ClassificationReport", {}),
    ("HOOKS", "AtomicCheckpointHook", {}),
    ("HOOKS", "CPUThreadsHook", dict(num_threads=1)),
    ("HOOKS", "ExactResumeHook", {}),
    ("HOOKS", "RunSummaryHook", {}),
]


@pytest.mark.parametrize("scope", ["mmengine", "mmpretrain", "mmseg"])
@pytest.mark.parametrize("package", [root, mmpretrain.registry, mmseg.registry], ids=["root", "mmpretrain", "mmseg"])
@pytest.mark.parametrize("registry, name, kwargs", ENTRIES, ids=[name for _, name, _ in ENTRIES])
def test_plain_names_are_found_everywhere(scope, package, registry, name, kwargs):
    with DefaultScope.overwrite_default_scope(scope):
        assert type(getattr(package, registry).build(dict(type=name, **kwargs))) is getattr(fma_mm, name)


def python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_import_is_light_and_quiet():
    heavy = ["mmpretrain", "mmseg", "sklearn", "matplotlib.pyplot"]
    done = python(f"import sys, fma_mm; print([name for name in {heavy} if name in sys.modules])")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "[]", "")


@pytest.mark.parametrize("missing", ["mmengine", "mmcv"])
def test_import_without_openmmlab_says_what_to_install(missing):
    done = python(f"import sys; sys.modules['{missing}'] = None; import fma_mm")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("ImportError: fma_mm needs mmengine and mmcv")
    assert 'pip install "fma-mm[mm]"' in done.stderr


def test_version_is_that_of_the_distribution():
    from importlib.metadata import version

    assert fma_mm.__version__ == version("fma-mm")
