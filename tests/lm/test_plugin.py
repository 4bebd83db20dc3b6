import importlib.util
import os
import shutil
import sys
from argparse import Namespace

import pytest
from fairseq import models, utils
from fairseq.data.encoders import TOKENIZER_REGISTRY
from fairseq.tasks import TASK_REGISTRY
from helpers.fairseq_commands import PLUGIN, server
from helpers.language_models import parse_flags

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
    assert parse_flags("fma_lm_tiny", "--user-dir", str(user_dir), "--fma-rank", "2").fma_rank == 2


def test_fairseq_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "fairseq", None)
    spec = importlib.util.spec_from_file_location("lm_without_fairseq", PLUGIN / "__init__.py")
    with pytest.raises(ImportError, match=r'lm needs fairseq; install it with: pip install "fma-mm\[lm\]"'):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


#: Run where fairseq is imported and the plugin is not, with ``folder`` and ``send``.
INSTALLED = """
import importlib.util
import sys
sys.modules.update(fma_mm=None, mmengine=None)
spec = importlib.util.spec_from_file_location("lm", folder + "/lm/__init__.py")
lm = sys.modules["lm"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(lm)
from argparse import Namespace
from fairseq import models, tasks, utils
def registered():
    return {*models.ARCH_MODEL_REGISTRY, *tasks.TASK_REGISTRY}
before = registered()
utils.import_user_module(Namespace(user_dir=folder + "/lm"))
send((lm.__path__, before, registered()))
"""


@pytest.mark.slow
def test_an_installed_plugin_registers_itself_before_fairseq_asks(tmp_path):
    """In site-packages, and without the OpenMMLab side, which fairseq's users need not have."""
    shutil.copytree(PLUGIN, tmp_path / "lm", ignore=shutil.ignore_patterns("__pycache__"))
    context = server()
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=exec, args=(INSTALLED, dict(folder=str(tmp_path), send=theirs.send)))
    process.start()
    theirs.close()
    path, before, after = ours.recv()
    process.join()
    assert path == [str(tmp_path / "lm")]
    assert before == after >= {"byte_language_modeling", *SIZES}
