"""The CIFAR-10 configs: models of equal size under one schedule, and each takes training steps on a small folder.

Beside them lie longer schedules of the small FMA2D. configs/trial has a plain ViT and an FMA2D that serve to compare
attentions, and fine-tunings with another attention than the weights were trained with.
"""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from PIL import Image

from fma_kernels import ATTENTIONS, CoreAttention
from fma_mm import cli
from fma_mm.analysis.flops import count_flops, count_parameters

ROOT = Path(__file__).parents[2]
FOLDER, TRIAL = ROOT / "configs" / "cifar10", ROOT / "configs" / "trial"
CONFIGS = sorted(FOLDER.glob("*.py"))
NAME = re.compile(r"(fma2d|swin|vit)-nano(-p4)?_b64-3k_cifar10")
OURS = FOLDER / "fma2d-nano_b64-3k_cifar10.py"
LONGER = FOLDER / "fma2d-nano_b64-16k_cifar10.py"
CONTINUED = FOLDER / "fma2d-nano_b64-16k-5k_cifar10.py"
CONTINUED_AGAIN = FOLDER / "fma2d-nano_b64-27k_cifar10.py"
SHIPPED = FOLDER / "fma2d-nano_b64-33k_cifar10.py"
COMPARED = [path for path in CONFIGS if path not in (LONGER, CONTINUED, CONTINUED_AGAIN, SHIPPED)]
# The configs that compare attentions, each with the option that chooses one and the number of its attentions.
CONTROLS = [
    (TRIAL / "vit-micro-p4_b64-12k_cifar10.py", "custom_hooks.0.attention", 2),
    (TRIAL / "fma2d-nano_b64-12k_cifar10.py", "model.backbone.attention", 7),
]


@pytest.fixture(scope="module")
def cifar10(tmp_path_factory) -> Path:
    """A folder per class for training and for validation, two images in each."""
    root = tmp_path_factory.mktemp("cifar10")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in Config.fromfile(OURS).classes:
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(2):
                Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i:04d}.jpg")
    return root


@pytest.mark.parametrize("config", COMPARED, ids=lambda path: path.stem)
def test_only_the_backbone_differs(config):
    assert NAME.fullmatch(config.stem)
    ours, theirs = Config.fromfile(OURS).to_dict(), Config.fromfile(config).to_dict()
    for cfg in (ours, theirs):
        del cfg["model"]["backbone"], cfg["model"]["head"]["in_channels"]
    assert ours == theirs


def test_the_longer_training_differs_in_its_schedule_alone():
    short, long = Config.fromfile(OURS).to_dict(), Config.fromfile(LONGER).to_dict()
    assert long["param_scheduler"][-1]["end"] == long["train_cfg"]["max_iters"] == long["iterations"] == 16000
    for cfg in (short, long):
        del cfg["param_scheduler"], cfg["train_cfg"], cfg["iterations"]
    assert short == long


@pytest.mark.parametrize(
    "config, before, iterations",
    [(CONTINUED, LONGER, 5000), (CONTINUED_AGAIN, CONTINUED, 8000), (SHIPPED, CONTINUED_AGAIN, 6000)],
)
def test_a_continued_training_starts_from_the_one_before(config, before, iterations):
    long, last, continued = (Config.fromfile(path).to_dict() for path in (LONGER, before, config))
    assert continued["load_from"] == f"work_dirs/{before.stem}/iter_{last['iterations']}.pth"
    assert long["load_from"] is None
    assert continued["param_scheduler"][-1]["end"] == continued["train_cfg"]["max_iters"] == iterations
    assert continued["iterations"] == iterations
    assert continued["randomness"] != last["randomness"]
    assert continued["optim_wrapper"]["optimizer"].pop("lr") < long["optim_wrapper"]["optimizer"].pop("lr")
    for cfg in (long, continued):
        del cfg["param_scheduler"], cfg["train_cfg"], cfg["iterations"], cfg["load_from"], cfg["randomness"]
    assert long == continued


@pytest.mark.parametrize("config", [config for config, *_ in CONTROLS], ids=lambda path: path.stem)
def test_the_controls_see_at_least_15_epochs_by_the_recipe_of_the_others(config):
    ours, controls = Config.fromfile(OURS).to_dict(), Config.fromfile(config).to_dict()
    iterations = controls["iterations"]
    assert iterations == controls["param_scheduler"][-1]["end"] == controls["train_cfg"]["max_iters"]
    assert iterations * controls["train_dataloader"]["batch_size"] >= 15 * 50_000
    for cfg in (ours, controls):
        del cfg["model"]["backbone"], cfg["model"]["head"]["in_channels"]
        del cfg["param_scheduler"], cfg["train_cfg"], cfg["iterations"]
        cfg.pop("custom_hooks", None)
    assert ours == controls


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("config, option, count", CONTROLS, ids=lambda value: getattr(value, "stem", None))
def test_attention_is_an_option(config, option, count, attention):
    """As the page of results chooses it."""
    model = cli.build_model(cli.read_config(str(config), {option: attention}))
    found = [module.attention for module in model.modules() if isinstance(module, CoreAttention)]
    assert found == [attention] * count


@pytest.mark.parametrize("config", COMPARED, ids=lambda path: path.stem)
def test_equal_size(config):
    """Parameters and FLOPs are those of FMA2D to within a tenth."""
    init_default_scope("mmpretrain")
    sizes = []
    for path in (OURS, config):
        model = MODELS.build(Config.fromfile(path).model)
        sizes.append((count_parameters(model), count_flops(model, torch.rand(1, 3, 32, 32))[""]))
    (our_parameters, our_flops), (parameters, flops) = sizes
    assert parameters == pytest.approx(our_parameters, rel=0.1)
    assert flops == pytest.approx(our_flops, rel=0.1)


@pytest.mark.parametrize("config", sorted(TRIAL.glob("*_swapped_cifar10.py")), ids=lambda path: path.stem)
def test_a_swapped_model_takes_the_weights_of_the_original(config):
    """All of them: what is missing are the bases, and they start as means."""
    cfg = cli.read_config(str(config), {})
    original = cli.build_model(cli.read_config(str(config), {"custom_hooks": []})).state_dict()
    incompatible = cli.build_model(cfg).load_state_dict(original, strict=False)
    assert not incompatible.unexpected_keys
    assert incompatible.missing_keys and all("_basis" in key for key in incompatible.missing_keys)


@pytest.mark.slow
@pytest.mark.parametrize("config", [*CONFIGS, *sorted(TRIAL.glob("*.py"))], ids=lambda path: path.stem)
def test_training(make_runner, cifar10, one_thread, config):
    """The tool's runner trains two iterations and validates all images."""
    loaders = [f"{name}_dataloader" for name in ("train", "val")]
    runner = make_runner(
        config,
        *(f"{loader}.dataset.data_root={cifar10}" for loader in loaders),
        *(f"{loader}.num_workers=0" for loader in loaders),
        *(f"{loader}.batch_size=10" for loader in loaders),
        "train_cfg.max_iters=2",
        "load_from=None",  # of a training that goes on from another
    )
    runner.train()
    assert runner.iter == 2
    assert len(runner.val_dataloader.dataset) == 20
    assert runner.message_hub.get_scalar("val/accuracy/top1").current() in range(0, 101, 5)
