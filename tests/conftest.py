"""The command-line tools, and small data sets in the formats of the real ones, for the tests of configs and tools.

The tests of the kernels run on machines that have little more than PyTorch and pytest, so this file imports no more.
"""

import gc
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.ranks import Ranks
from helpers.tool_loader import load_tool

# Without a GPU, Triton's interpreter runs the kernels. Triton looks when a kernel is defined, which is when its module
# is imported, and PyTorch's compiler imports Triton as well: so this has to come before everything else.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

try:
    from hypothesis import HealthCheck, settings
except ImportError:
    pass
else:
    # How long an example takes says something about the machine, not about the code.
    settings.register_profile("fma", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("fma")


@pytest.fixture(autouse=True)
def own_default_scope() -> None:
    """No test sees the default scope that a runner in another one has left: mmengine keeps it for the process."""
    if registry := sys.modules.get("mmengine.registry"):  # the tests of the operators need no mmengine
        registry.DefaultScope._instance_dict.clear()


def pytest_collection_finish() -> None:
    """Objects that the libraries have made stay: mmengine's collections of garbage need not look at them again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def unformatted_configs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each checkpoint and log holds the config as code: formatting that takes as long as training a small model."""
    if sys.modules.get("mmengine"):
        monkeypatch.setattr("yapf.yapflib.yapf_api.FormatCode", lambda text, **_: (text, True))


@pytest.fixture(scope="session")
def train() -> ModuleType:
    """tools/train.py"""
    return load_tool("train")


@pytest.fixture(scope="session")
def evaluate() -> ModuleType:
    """tools/test.py"""
    return load_tool("test")


@pytest.fixture
def make_runner(train: ModuleType, tmp_path: Path) -> Callable:
    """Build the runner that tools/train.py runs: make_runner(config, "KEY=VALUE", ...)."""

    def make(config: Path, *options: str):
        # mmengine's visualizers are singletons by the name of the run, which is the time in seconds unless it has one.
        argv = [str(config), "--work-dir", str(tmp_path), "--cfg-options", f"experiment_name={tmp_path.name}", *options]
        return train.cli.build_runner(train.make_config(train.make_parser().parse_args(argv)))

    return make


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """Four processes with gloo between them."""
    started = Ranks(4, tmp_path_factory.mktemp("ranks"))
    yield started
    started.stop()


def write_image(path: Path, rng: np.random.Generator, size: tuple[int, int]) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path, format="JPEG")


@pytest.fixture(scope="session")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ImageNet as it comes: a folder per class for training; validation images in one folder, listed in meta/."""
    root = tmp_path_factory.mktemp("imagenet")
    rng = np.random.default_rng(0)
    wnids = [f"n{i:08d}" for i in range(1000)]
    for wnid in wnids:
        (root / "train" / wnid).mkdir(parents=True)
    for i in range(24):
        wnid = wnids[7 * i % 13]
        write_image(root / "train" / wnid / f"{wnid}_{i}.JPEG", rng, (40 + i, 60 - i))
    names = [f"ILSVRC2012_val_{i:08d}.JPEG" for i in range(6)]
    for name in names:
        write_image(root / "val" / name, rng, (48, 36))
    (root / "meta").mkdir()
    (root / "meta" / "val.txt").write_text("".join(f"{name} {i}\n" for i, name in enumerate(names)))
    return root


@pytest.fixture(scope="session")
def ade20k(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ADE20K: images and, under the same names, maps of the 150 classes with 0 for none."""
    from PIL import Image

    root = tmp_path_factory.mktemp("ade")
    rng = np.random.default_rng(1)
    for split, count in {"training": 12, "validation": 3}.items():
        (root / "annotations" / split).mkdir(parents=True)
        for i in range(count):
            write_image(root / "images" / split / f"ADE_{i}.jpg", rng, (50, 70 - i))
            labels = np.kron(rng.integers(0, 151, (5, 7)), np.ones((10, 10)))[:50, : 70 - i]
            Image.fromarray(labels.astype(np.uint8)).save(root / "annotations" / split / f"ADE_{i}.png")
    return root


def small_trainings() -> ModuleType:
    """The module with the texts of the configs below; it imports mmengine."""
    from helpers import small_trainings

    return small_trainings


@pytest.fixture
def classifier(tmp_path: Path, imagenet: Path) -> Path:
    """The config of a small classifier: 6 batches an epoch, 4 epochs, every kind of randomness."""
    path = tmp_path / "classifier.py"
    path.write_text(small_trainings().CLASSIFIER.replace("{data}", str(imagenet)))
    return path


@pytest.fixture
def vit(classifier: Path) -> Path:
    """The config of a vision transformer under the same recipe as the classifier."""
    path = classifier.with_name("vit.py")
    path.write_text(small_trainings().VIT)
    return path


@pytest.fixture
def segmentor(tmp_path: Path, ade20k: Path) -> Path:
    """The config of a small segmentor: 16 iterations, a checkpoint every 4."""
    path = tmp_path / "segmentor.py"
    path.write_text(small_trainings().SEGMENTOR.replace("{data}", str(ade20k)))
    return path


RUNS = itertools.count()


@pytest.fixture
def run_training(train, tmp_path, monkeypatch, one_thread):
    """Train in this process: run_training(config, work_dir, *arguments, settings="", stop=None).

    The settings are lines that are added to the config; ``stop`` is the iteration after which the run is stopped.
    """
    from helpers.small_trainings import Stop
    from mmengine.runner import loops

    monkeypatch.setattr(loops, "time", SimpleNamespace(sleep=lambda seconds: None))  # mmengine waits between epochs
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)  # torch waits for collected workers

    def run(config: Path, work_dir: str, *arguments: str, settings: str = "", stop: int | None = None) -> Path:
        text = f"{config.read_text()}\n{settings}\n"
        if stop is not None:
            text += f"custom_hooks = [*globals().get('custom_hooks', []), dict(type='StopHook', after={stop})]\n"
        path = tmp_path / f"{work_dir}_config.py"
        # Runs of one name that start in the same second share their visualizer, and its folder (ManagerMixin).
        path.write_text(text + f"experiment_name = 'run{next(RUNS)}'\n")
        command = [str(path), "--work-dir", str(tmp_path / work_dir), *arguments]
        if stop is None:
            train.main(command)
        else:
            with pytest.raises(Stop):
                train.main(command)
        gc.collect()  # ends the workers of the run's data loaders
        return tmp_path / work_dir

    return run


@pytest.fixture
def one_thread():
    """Compute on one thread, so that tests that run side by side do not wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def browser() -> Iterator:
    """Headless Chromium."""
    from helpers.browser import start_browser

    with start_browser() as started:
        yield started
