"""fairseq-hydra-train, with the plugin in a folder of another name."""

import shutil
from pathlib import Path

import pytest
import torch
from helpers.fairseq_commands import PLUGIN, Command

CONFIG = """
# @package _group_
common: {{user_dir: {plugin}, cpu: true}}
checkpoint: {{save_dir: {folder}/checkpoints, no_epoch_checkpoints: true}}
task: {{_name: language_modeling, data: {corpus}, tokens_per_sample: 64, sample_break_mode: none}}
model: {{_name: fma_lm_tiny, decoder_layers: 1, decoder_attention_heads: 2, fma_cell_size: 8, fma_rank: 2}}
criterion: {{_name: cross_entropy}}
optimizer: {{_name: adam, adam_betas: "(0.9, 0.98)"}}
lr_scheduler: {{_name: inverse_sqrt, warmup_updates: 5}}
dataset: {{batch_size: 4, required_batch_size_multiple: 1, num_workers: 0}}
optimization: {{lr: [0.01], max_update: 10}}
"""


@pytest.fixture
def hydra_train(start, corpus, tmp_path):
    """Train with overrides of the config: hydra_train("KEY=VALUE")."""

    def hydra_train(*overrides: str) -> Command:
        plugin = shutil.copytree(PLUGIN, tmp_path / "renamed", ignore=shutil.ignore_patterns("__pycache__"))
        (tmp_path / "small.yaml").write_text(CONFIG.format(plugin=plugin, folder=tmp_path, corpus=corpus))
        directories = ["--config-dir", tmp_path, f"hydra.run.dir={tmp_path}/run"]
        return start("hydra-train", "--config-name", "small", *directories, *overrides, plugin=False)

    return hydra_train


@pytest.mark.slow
def test_training_from_a_config_in_bfloat16(hydra_train, call, corpus, tmp_path: Path, caplog, source):
    hydra_train("common.bf16=true", "++model.fma_basis_kind=mean", "++model.fma_backend=torch").output()
    path = tmp_path / "checkpoints" / "checkpoint_last.pt"
    checkpoint = torch.load(path, weights_only=False)
    assert checkpoint["optimizer_history"][-1]["num_updates"] == 10
    model = checkpoint["cfg"]["model"]
    assert (model["_name"], model["fma_cell_size"], model["fma_attention"]) == ("fma_lm_tiny", 8, "fma")
    assert (model["fma_basis_kind"], model["fma_backend"]) == ("mean", "torch")
    weights = checkpoint["model"]
    assert weights["decoder.layers.0.self_attn.q_proj.weight"].shape == (128, 128)  # the size of the dataclass
    weight = weights["decoder.layers.0.fc1.weight"]
    assert torch.equal(weight, weight.bfloat16().float())
    assert not any(name.startswith("decoder.layers.1") for name in weights)

    with caplog.at_level("INFO"):
        flags = ["--gen-subset", "valid", "--tokens-per-sample", 64, "--num-workers", 0]
        call("eval-lm", corpus, "--path", path, *flags)
    assert f"Evaluated {len(source['valid']) + 1:,} tokens" in caplog.text


@pytest.mark.slow
def test_fp16_without_a_gpu_ends_with_an_error(hydra_train):
    assert "Found no NVIDIA driver on your system" in hydra_train("common.fp16=true").error()
