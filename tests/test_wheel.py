"""The wheel, built from the source distribution, holds everything and works without the checkout."""

import email
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from helpers.wheel_builder import ROOT, build

pytestmark = pytest.mark.slow


def files(*folders: str) -> set[str]:
    """The files of the checkout in these folders, without what Python caches."""
    found = (path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file())
    return {path.relative_to(ROOT).as_posix() for path in found if "__pycache__" not in path.parts}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def site(built, tmp_path_factory) -> Path:
    """A folder with the contents of the wheel, as pip would unpack it."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(built[1]) as wheel:
        wheel.extractall(folder)
    return folder


def test_source_distribution_is_complete(built):
    with tarfile.open(built[0]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    top = {"LICENSE", "README.md", "CONTRIBUTING.md", "Makefile", "constraints.txt", "model-index.yml"}
    build_files = {"setup.py", "pyproject.toml", "MANIFEST.in"}
    assert top | build_files | files("kernels", "fma_mm", "lm", "configs", "tools", "tests", "docs", ".ci") <= names


def test_wheel_holds_packages_and_mim_files_and_nothing_else(built):
    with zipfile.ZipFile(built[1]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    kernels = {name.removeprefix("kernels/") for name in files("kernels/fma_kernels")}
    package = files("tools/fma_tools")
    mim = {f"fma_mm/.mim/{name}" for name in [*(files("configs", "tools") - package), "model-index.yml"]}
    tools = {name.removeprefix("tools/") for name in package}
    assert names == kernels | tools | files("fma_mm", "lm") | mim


def test_metadata(site):
    from fma_kernels import __version__

    (info,) = site.glob("*.dist-info")
    metadata = email.message_from_string((info / "METADATA").read_text())
    assert (metadata["Name"], metadata["Version"]) == ("fma-mm", __version__)
    assert metadata["License-Expression"] == "Apache-2.0"
    assert (info / "licenses" / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    requirements = metadata.get_all("Requires-Dist")
    assert [r for r in requirements if "extra ==" not in r] == ["torch>=2.6"], "the operators need PyTorch alone"
    assert set(metadata.get_all("Provides-Extra")) >= {"mm", "lm", "baselines", "dev"}
    assert metadata.get_payload().strip() == (ROOT / "README.md").read_text().strip()


def test_wheel_is_usable(site, tmp_path):
    """Models are found by name, configs by mmengine, and the tools import what they need from packages alone."""
    config = '_base_ = "fma_mm::imagenet/fma2d-tiny_8xb128_in1k.py"\nmodel = dict(head=dict(num_classes=7))'
    (tmp_path / "mine.py").write_text(config)
    mim = site / "fma_mm" / ".mim"
    tools = sorted(str(path) for path in (mim / "tools").rglob("*.py"))
    assert len(tools) >= 15
    code = """
import fma_mm, runpy, sys
from pathlib import Path
from mmengine.config import Config
from mmengine.hub import get_config
from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq.utils import import_user_module
import argparse
lm = Path(fma_mm.__file__).parents[1] / "lm"
import_user_module(argparse.Namespace(user_dir=str(lm)))
print("the plugin registers fma_lm_tiny:", "fma_lm_tiny" in ARCH_MODEL_REGISTRY)
print(fma_mm.get_model("fma2d-tiny_8xb128_in1k")._config.filename)
print(get_config("fma_mm::imagenet/fma2d-tiny_8xb128_in1k.py").filename)
print(Config.fromfile("mine.py").model.head.num_classes)
for tool in sys.argv[1:]:
    runpy.run_path(tool)
assert Path(sys.modules["fma_tools"].__file__).parents[1] == Path(fma_mm.__file__).parents[1]
"""
    # On the contents of the wheel, not on the checkout.
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *tools]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shipped = str(mim / "configs/imagenet/fma2d-tiny_8xb128_in1k.py")
    assert done.stdout.strip().splitlines()[-3:] == [shipped, shipped, "7"]
    assert "the plugin registers fma_lm_tiny: True" in done.stdout
    assert list(tmp_path.iterdir()) == [tmp_path / "mine.py"], "importing writes nothing"
