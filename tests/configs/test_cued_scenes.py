"""The plain ViT on scenes with a cue: which attentions see the cue from the far corner."""

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope

import fma_mm
from fma_kernels import ATTENTIONS
from fma_mm import cli

CONFIG = "configs/cued_scenes/vit-nano-p4_cued-scenes-96x96.py"


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_who_sees_the_cue(attention):
    torch.manual_seed(0)
    cfg = cli.read_config(CONFIG, {})
    hook = {key: value for key, value in cfg.custom_hooks[0].items() if key != "type"}
    with DefaultScope.overwrite_default_scope("mmseg"):
        model = MODELS.build(cfg.model)
    fma_mm.convert_attention(model, **{**hook, "attention": attention})
    model.init_weights()
    image = torch.rand(1, 3, 96, 96, requires_grad=True)
    logits = model.decode_head(model.backbone(image))
    assert logits.shape == (1, 2, 24, 24)
    (grad,) = torch.autograd.grad(logits[0, 0, -1, -1], image)
    assert (grad[..., :24, :24] != 0).any() == (attention in ("full", "fma", "fma_linear"))


@pytest.mark.slow
def test_training_step(one_thread):
    cfg = cli.read_config(CONFIG, {})
    with DefaultScope.overwrite_default_scope("mmseg"):
        from mmengine.registry import DATASETS

        dataset = DATASETS.build({**cfg.train_dataloader.dataset, "num_scenes": 2})
        model = MODELS.build(cfg.model)
        batch = model.data_preprocessor(dict(inputs=[dataset[0]["inputs"]], data_samples=[dataset[0]["data_samples"]]))
        losses = model.loss(**batch)
    assert losses["decode.loss_ce"].isfinite()
