import ast
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import mmpretrain.registry
import mmseg.registry
import pytest
import torch
from mmengine import registry as root
from mmengine.registry import DefaultScope, Registry

import fma_mm

ROOT = Path(__file__).parents[2]

ENTRIES = [
    ("MODELS", "FMA2D", dict(arch=dict(embed_dims=8, depths=(1,), num_heads=(1,)), patch_sizes=4, strides=4)),
    ("MODELS", "FMA2DAttention", dict(embed_dims=8, num_heads=2)),
    ("DATASETS", "CuedScenes", dict(lazy_init=True)),
    ("DATASETS", "DigitScenes", dict(lazy_init=True)),
    ("DATASETS", "HandwrittenDigits", dict(lazy_init=True)),
    ("METRICS", "ClassificationReport", {}),
    ("HOOKS", "AtomicCheckpointHook", {}),
    ("HOOKS", "ConvertAttentionHook", dict(cell_size=7)),
    ("HOOKS", "CPUThreadsHook", dict(num_threads=1)),
    ("HOOKS", "ExactResumeHook", {}),
    ("HOOKS", "RunSummaryHook", {}),
    (
        "OPTIM_WRAPPER_CONSTRUCTORS",
        "LayerDecayOptimWrapperConstructor",
        dict(optim_wrapper_cfg=dict(optimizer=dict(type="SGD", lr=0.1)), paramwise_cfg=dict(layer_decay_rate=0.9)),
    ),
]

KINDS = {kind for kind, _, _ in ENTRIES}
#: The registries of a project that fma_mm has never heard of.
ACME = SimpleNamespace(**{kind: Registry(kind.lower(), parent=getattr(root, kind), scope="acme") for kind in KINDS})
PACKAGES = {"mmengine": root, "mmpretrain": mmpretrain.registry, "mmseg": mmseg.registry, "acme": ACME}

every_scope = pytest.mark.parametrize("scope", PACKAGES)
every_package = pytest.mark.parametrize("package", PACKAGES.values(), ids=PACKAGES)


@every_scope
@every_package
@pytest.mark.parametrize("registry, name, kwargs", ENTRIES, ids=[name for _, name, _ in ENTRIES])
def test_plain_names_are_found_everywhere(scope, package, registry, name, kwargs):
    with DefaultScope.overwrite_default_scope(scope):
        assert type(getattr(package, registry).build(dict(type=name, **kwargs))) is getattr(fma_mm, name)


BACKBONE = dict(
    type="FMA2D", arch=dict(embed_dims=8, depths=(1, 1), num_heads=(1, 2)), patch_sizes=(3, 3), strides=(2, 2),
    cell_sizes=2, out_indices=(0, 1),
)  # fmt: skip


@every_scope
@every_package
def test_backbone_is_the_same_everywhere(scope, package, one_thread):
    images = torch.rand(2, 3, 20, 24)
    expected = fma_mm.FMA2D(**{key: value for key, value in BACKBONE.items() if key != "type"}).eval()
    with DefaultScope.overwrite_default_scope(scope):
        backbone = package.MODELS.build(BACKBONE).eval()
    backbone.load_state_dict(expected.state_dict())
    maps = backbone(images)
    assert [tuple(x.shape) for x in maps] == [(2, 8, 10, 12), (2, 16, 5, 6)]
    assert all(torch.equal(x, y) for x, y in zip(maps, expected(images), strict=True))


def test_everything_is_registered_once_in_the_root():
    """A second copy of a component, or one in a library's registry, would be registered there by force."""
    for registry, name, _ in ENTRIES:
        assert getattr(root, registry).module_dict[name].__module__.startswith("fma_mm.")
        for package in (mmpretrain.registry, mmseg.registry):
            child = getattr(package, registry)
            child.import_from_location()
            assert name not in child.module_dict
    mine = [
        (attribute, name)
        for attribute, registry in vars(root).items() if isinstance(registry, Registry)
        for name, component in registry.module_dict.items() if component.__module__.startswith("fma_mm.")
    ]  # fmt: skip
    listed = [(registry, name) for registry, name, _ in ENTRIES] + [("STRATEGIES", "FullyShardedStrategy")]
    assert sorted(mine) == sorted(listed), "ENTRIES lists everything"
    with pytest.raises(KeyError, match="FMA2D is already registered"):
        root.MODELS.register_module(module=type("FMA2D", (fma_mm.FMA2D,), {}))


@pytest.mark.slow
def test_plain_names_are_found_in_mmdetection():
    """In a process of its own, as mmdetection cannot be imported without operators that mmcv may lack."""
    code = f"""
import helpers.refusing_ops, fma_mm, mmdet.registry, torch
from mmengine import registry as root
from mmengine.registry import DefaultScope
found = []
for package in (root, mmdet.registry):
    for scope in ("mmengine", "mmdet"):
        with DefaultScope.overwrite_default_scope(scope):
            for registry, name, kwargs in {ENTRIES}:
                found.append(type(getattr(package, registry).build(dict(type=name, **kwargs))).__name__)
            maps = package.MODELS.build({BACKBONE})(torch.rand(2, 3, 20, 24))
            found.append([list(x.shape) for x in maps])
print(found)
"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    once = [*(name for _, name, _ in ENTRIES), [[2, 8, 10, 12], [2, 16, 5, 6]]]
    assert ast.literal_eval(done.stdout.splitlines()[-1]) == 4 * once


def python(code: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


def test_import_is_light_and_quiet():
    """It loads no large library, prints nothing, and leaves Python's import machinery alone."""
    heavy = ["mmpretrain", "mmseg", "mmdet", "sklearn", "matplotlib.pyplot"]
    hooks = "[finder for finder in sys.meta_path if getattr(finder, '__module__', '').startswith('fma_mm')]"
    done = python(f"import sys, fma_mm; print([name for name in {heavy} if name in sys.modules], {hooks})")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "[] []", "")


@pytest.mark.parametrize("missing", ["mmengine", "mmcv"])
def test_import_without_openmmlab_says_what_to_install(missing):
    done = python(f"import sys; sys.modules['{missing}'] = None; import fma_mm")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("ImportError: fma_mm needs mmengine and mmcv")
    assert 'pip install "fma-mm[mm]"' in done.stderr


def test_version_is_that_of_the_distribution():
    from importlib.metadata import version

    assert fma_mm.__version__ == version("fma-mm")
