"""Layer-wise learning-rate decay, on models of two libraries, against depths that are written out here."""

from functools import cache

import mmpretrain.models  # noqa: F401
import mmseg.models  # noqa: F401
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from torch import nn

FMA2D = dict(
    type="FMA2D",
    arch=dict(embed_dims=8, depths=(1, 2), num_heads=(1, 2)),
    patch_sizes=(7, 3),
    strides=(4, 2),
    out_indices=(0, 1),
)
VIT = dict(
    type="mmpretrain.VisionTransformer",
    arch=dict(embed_dims=8, num_layers=3, num_heads=1, feedforward_channels=8),
    img_size=32,
    out_type="featmap",
    out_indices=(0, 2),
)
#: The layers of each backbone, first to last, as what their parameters' names start with. All else is after them.
LAYERS = {
    "FMA2D": [
        ["stages.0.patch_embed."],
        ["stages.0.blocks.0.", "stages.1.patch_embed."],
        ["stages.1.blocks.0."],
        ["stages.1.blocks.1."],
    ],
    "mmpretrain.VisionTransformer": [
        ["cls_token", "pos_embed", "patch_embed."],
        ["layers.0."],
        ["layers.1."],
        ["layers.2."],
    ],
}
BASE_LR, BASE_DECAY = 1e-3, 0.05


def classifier(backbone: dict) -> dict:
    return dict(
        type="ImageClassifier", backbone=backbone, head=dict(type="LinearClsHead", num_classes=5, in_channels=8)
    )


def segmentor(backbone: dict) -> dict:
    head = dict(type="FCNHead", in_channels=8, in_index=0, channels=8, num_convs=1, num_classes=5)
    return dict(type="EncoderDecoder", backbone=backbone, decode_head=head)


MODEL_CFGS = {
    (scope, backbone["type"]): make(backbone)
    for scope, make in {"mmpretrain": classifier, "mmseg": segmentor}.items()
    for backbone in (FMA2D, VIT)
}
every_model = pytest.mark.parametrize("scope, backbone", MODEL_CFGS)


@cache
def model_of(scope: str, backbone: str) -> nn.Module:
    with DefaultScope.overwrite_default_scope(scope):
        return MODELS.build(MODEL_CFGS[scope, backbone])


def groups_of(model: nn.Module, scope: str, paramwise_cfg: dict, **cfg) -> dict[str, dict]:
    """The optimizer's settings of every parameter, by name."""
    optimizer = dict(type="AdamW", lr=BASE_LR, weight_decay=BASE_DECAY)
    with DefaultScope.overwrite_default_scope(scope):
        wrapper = build_optim_wrapper(model, dict(optimizer=optimizer, paramwise_cfg=paramwise_cfg, **cfg))
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = {names[group.pop("params")[0]]: group for group in wrapper.optimizer.param_groups}
    assert groups.keys() == set(names.values())
    return groups


def decayed(model: nn.Module, scope: str, paramwise_cfg: dict) -> dict[str, dict]:
    return groups_of(model, scope, paramwise_cfg, constructor="LayerDecayOptimWrapperConstructor")


def layers_above(name: str, layers: list[list[str]]) -> int:
    """Number of times that a parameter's rate is decayed."""
    for i, prefixes in enumerate(layers):
        if name.startswith(tuple(f"backbone.{prefix}" for prefix in prefixes)):
            return len(layers) - i
    return 0


@every_model
@settings(max_examples=20)
@given(
    rate=st.floats(0.05, 1),
    head=st.floats(0.1, 10),
    patch_embed=st.floats(0.1, 10),
    norm_decay=st.floats(0, 1),
    bias_decay=st.floats(0, 1),
)
def test_rate_of_every_parameter(scope, backbone, rate, head, patch_embed, norm_decay, bias_decay):
    model = model_of(scope, backbone)
    usual = dict(
        norm_decay_mult=norm_decay,
        bias_decay_mult=bias_decay,
        custom_keys={"head": dict(lr_mult=head), "patch_embed": dict(lr_mult=patch_embed, decay_mult=0.5)},
    )
    groups = decayed(model, scope, dict(layer_decay_rate=rate, **usual))
    default = groups_of(model, scope, usual)
    for name, group in groups.items():
        factor = head if "head" in name else patch_embed if "patch_embed" in name else 1
        expected = BASE_LR * factor * rate ** layers_above(name, LAYERS[backbone])
        assert group["lr"] == pytest.approx(expected, rel=1e-12)
        assert group["weight_decay"] == default[name]["weight_decay"]


@every_model
def test_without_decay_it_is_the_default_constructor(scope, backbone):
    model = model_of(scope, backbone)
    usual = dict(norm_decay_mult=0.0, custom_keys={"head": dict(lr_mult=10.0), "_basis": dict(decay_mult=0.0)})
    assert decayed(model, scope, dict(layer_decay_rate=1, **usual)) == groups_of(model, scope, usual)


def test_frozen_parameters_are_left_out():
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        model = MODELS.build(classifier(dict(FMA2D, frozen_stages=0)))
        wrapper = build_optim_wrapper(
            model,
            dict(
                optimizer=dict(type="SGD", lr=BASE_LR),
                constructor="LayerDecayOptimWrapperConstructor",
                paramwise_cfg=dict(layer_decay_rate=0.5),
            ),
        )
    optimised = {parameter for group in wrapper.optimizer.param_groups for parameter in group["params"]}
    assert optimised == {parameter for parameter in model.parameters() if parameter.requires_grad}
    assert len(optimised) < len(list(model.parameters()))


@pytest.mark.parametrize("rate", [0, -0.5, 1.5, float("nan"), "0.9", None])
def test_bad_rate(rate):
    model = model_of("mmpretrain", "FMA2D")
    with pytest.raises(ValueError, match=r"layer_decay_rate'\]=.*expected a number in \(0, 1\]"):
        decayed(model, "mmpretrain", dict(layer_decay_rate=rate))


@pytest.mark.parametrize("paramwise_cfg", [None, {}, dict(norm_decay_mult=0.0)])
def test_no_rate(paramwise_cfg):
    with pytest.raises(ValueError, match=r"layer_decay_rate'\]=None: expected a number"):
        decayed(model_of("mmpretrain", "FMA2D"), "mmpretrain", paramwise_cfg)


def test_no_learning_rate():
    cfg = dict(
        optimizer=dict(type="AdamW"),
        constructor="LayerDecayOptimWrapperConstructor",
        paramwise_cfg=dict(layer_decay_rate=0.9),
    )
    with pytest.raises(ValueError, match=r"optimizer\['lr'\]=None: expected a learning rate"):
        build_optim_wrapper(model_of("mmpretrain", "FMA2D"), cfg)


def test_backbone_that_tells_no_depth():
    backbone = dict(type="MixVisionTransformer", embed_dims=8, num_stages=1, num_layers=[1], num_heads=[1])
    backbone |= dict(patch_sizes=[7], strides=[4], sr_ratios=[1], out_indices=(0,))
    with DefaultScope.overwrite_default_scope("mmseg"):
        model = MODELS.build(segmentor(backbone))
    with pytest.raises(TypeError, match=r"EncoderDecoder with backbone=MixVisionTransformer: .*get_layer_depth"):
        decayed(model, "mmseg", dict(layer_decay_rate=0.9))


def test_model_without_a_backbone():
    with pytest.raises(TypeError, match="model=Linear with backbone=NoneType"):
        decayed(nn.Linear(2, 2), "mmengine", dict(layer_decay_rate=0.9))
