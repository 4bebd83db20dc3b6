import os
import shutil
import subprocess
import sys
from argparse import Namespace

import pytest
from fairseq import models, utils
from fairseq.data.encoders import TOKENIZER_REGISTRY
from fairseq.tasks import TASK_REGISTRY
from helpers.fairseq_commands import PLUGIN
from helpers.language_models import parse

SIZES = {f"fma_lm{size}" for size in ("", "_tiny", "_enwik8", "_wiki103")}
SIZES |= {f"fma_mlm{size}" for size in ("", "_tiny", "_wiki103")}


def registered() -> list[dict]:
    return [
        dict(registry)
        for registry in (
            models.MODEL_REGISTRY, models.MODEL_DATACLASS_REGISTRY, models.ARCH_MODEL_REGISTRY,
            models.ARCH_CONFIG_REGISTRY, TASK_REGISTRY, TOKENIZER_REGISTRY,
        )
    ]  # fmt: skip


@pytest.mark.parametrize("user_dir", [PLUGIN, os.path.relpath(PLUGIN)], ids=["absolute", "relative"])
def test_user_dir_adds_nothing_to_an_imported_plugin(user_dir, monkeypatch):
    monkeypatch.delattr(utils.import_user_module, "memo", raising=False)  # of the paths that fairseq has imported
    before = registered()
    utils.import_user_module(Namespace(user_dir=str(user_dir)))
    assert registered() == before
    assert set(models.ARCH_MODEL_REGISTRY) >= SIZES
    model = parse("fma_lm_tiny", "--user-dir", str(user_dir)).model
    assert (model.decoder_layers, model.fma_cell_size) == (4, 32)


@pytest.mark.slow
def test_an_installed_plugin_registers_itself_before_fairseq_asks(tmp_path):
    """In site-packages, and without the OpenMMLab side, which fairseq's users need not have."""
    shutil.copytree(PLUGIN, tmp_path / "lm", ignore=shutil.ignore_patterns("__pycache__"))
    code = """
import sys
sys.modules.update(fma_mm=None, mmengine=None)
import lm
from argparse import Namespace
from fairseq import models, tasks, utils
names = lambda: {*models.ARCH_MODEL_REGISTRY, *tasks.TASK_REGISTRY}
before = names()
utils.import_user_module(Namespace(user_dir=sys.argv[1]))
print(lm.__path__[0], names() == before, *sorted(name for name in before if name.startswith(("fma_", "byte_"))))
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", code, str(tmp_path / "lm")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path / "lm"), "True", *sorted({"byte_language_modeling", *SIZES})]
