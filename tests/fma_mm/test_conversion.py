"""Vision transformers of mmpretrain and mmseg with their attention replaced."""

import copy
import io
import math

import mmpretrain.models
import mmseg.models
import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.runner.activation_checkpointing import turn_on_activation_checkpointing
from mmpretrain.models.selfsup import MAEViT, MaskFeatViT
from torch import nn

from fma_kernels import ATTENTIONS, CoreAttention, FMAttention
from fma_mm import convert_attention

ARCH = dict(embed_dims=8, num_layers=3, num_heads=2, feedforward_channels=16)
#: Images of at most this size have at most two cells of four patches per side.
SMALL, LARGE = (32, 28), (72, 40)


def pretrain(backbone="VisionTransformer", **options):
    return getattr(mmpretrain.models, backbone)(**(dict(arch=ARCH, img_size=32, patch_size=4) | options))


def seg(**options):
    default = dict(img_size=32, patch_size=4, embed_dims=8, num_layers=3, num_heads=2, out_indices=(0, 2))
    return mmseg.models.VisionTransformer(**(default | options))


def value_shortcut():
    """mmpretrain's attention with the options that its vision transformers leave alone."""
    model = pretrain(arch=ARCH | dict(num_heads=1))
    for layer in model.layers:
        options = dict(attn_drop=0.2, v_shortcut=True, use_layer_scale=True, proj_bias=False)
        layer.attn = mmpretrain.models.utils.MultiheadAttention(8, 1, **options)
    return model


MAP = dict(with_cls_token=False, out_type="featmap")
DROP_PATH = dict(drop_path_rate=0.5)
CASES = {
    "mmpretrain": (pretrain, dict(drop_rate=0.2, **DROP_PATH)),
    "mmpretrain, all outputs": (pretrain, dict(out_type="raw", out_indices=[0, 1, 2])),
    "mmpretrain, no class token": (pretrain, MAP),
    "mmpretrain, layer scale": (pretrain, dict(layer_scale_init_value=0.3, qkv_bias=False, pre_norm=True)),
    "mmpretrain, shortcut of values": (value_shortcut, {}),
    "mmpretrain, DeiT": (pretrain, dict(backbone="DistilledVisionTransformer")),
    "mmpretrain, DeiT3": (pretrain, dict(backbone="DeiT3", **DROP_PATH)),
    "mmpretrain, DeiT3, no class token": (pretrain, dict(backbone="DeiT3", **MAP)),
    "mmseg": (seg, DROP_PATH),
    "mmseg, class token": (seg, dict(output_cls_token=True, final_norm=True)),
    "mmseg, no class token": (seg, dict(with_cls_token=False, out_origin=True, qkv_bias=False)),
    "mmseg, checkpointing": (seg, dict(with_cp=True, **DROP_PATH)),
}


def trained(build, **options):
    """A model in evaluation mode with weights that all matter."""
    torch.manual_seed(0)
    model = build(**options)
    model.init_weights()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    model.eval()  # backbones return None
    return model


def images(size, dtype=torch.float32):
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1)).to(dtype)


def flat(outputs):
    """All tensors in the nested outputs of a backbone."""
    return [outputs] if isinstance(outputs, torch.Tensor) else [x for part in outputs for x in flat(part)]


def run(model, x, seed=2):
    """Outputs of a model and the gradients of its parameters."""
    torch.manual_seed(seed)
    outputs = flat(model(x))
    model.zero_grad()
    sum(out.square().sum() for out in outputs).backward()
    return outputs, {name: p.grad for name, p in model.named_parameters()}


# --- the function


@pytest.mark.parametrize(
    ("attention", "size"), [("fma", SMALL), ("fma_linear", SMALL), ("near", SMALL), ("full", LARGE)]
)
@pytest.mark.parametrize("case", CASES)
def test_full_attention_keeps_outputs_and_gradients(case, attention, size):
    """A grid of two cells per side, and the control on images of any size."""
    build, options = CASES[case]
    original = trained(build, **options)
    converted = convert_attention(copy.deepcopy(original), cell_size=4, attention=attention)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        x = images(size, dtype)
        for training in (False, True):
            for model in (original, converted):
                model.to(dtype).train(training)
            (expected, theirs), (outputs, mine) = run(original, x), run(converted, x)
            torch.testing.assert_close(outputs, expected, rtol=tolerance, atol=tolerance)
            for name, grad in mine.items():
                if name in theirs:
                    torch.testing.assert_close(grad, theirs[name], rtol=10 * tolerance, atol=100 * tolerance)
                else:  # nothing is summarised
                    assert "_basis" in name and torch.count_nonzero(grad) == 0


@pytest.mark.parametrize("attention", ["fma", "fma_linear", "near"])
@pytest.mark.parametrize(
    ("build", "options", "count"),
    [
        (pretrain, dict(out_type="raw"), 1),
        (pretrain, dict(backbone="DistilledVisionTransformer", out_type="raw"), 2),
        (pretrain, dict(backbone="DeiT3", out_type="raw"), 1),
    ],
)
def test_class_tokens_of_a_converted_layer_are_exact(build, options, count, attention):
    original = trained(build, **options)
    converted = convert_attention(copy.deepcopy(original), 4, attention=attention, layers=-1)
    x = images(LARGE)
    (expected,), (out,) = original(x), converted(x)
    torch.testing.assert_close(out[:, :count], expected[:, :count], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(out[:, count:], expected[:, count:], rtol=1e-2, atol=1e-2)


def test_class_token_of_a_converted_mmseg_layer_is_exact():
    original = trained(seg, output_cls_token=True, out_indices=-1)
    converted = convert_attention(copy.deepcopy(original), 4, layers=2)
    ((expected_map, expected),), ((feature_map, token),) = original(images(LARGE)), converted(images(LARGE))
    torch.testing.assert_close(token, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(feature_map, expected_map, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("build", [pretrain, seg])
def test_on_larger_images_it_is_fma_over_the_patches(build, attention):
    """With the projections of the original, and class token and patches at their places."""
    original = trained(build)
    inner = original.layers[1].attn if build is pretrain else original.layers[1].attn.attn
    names = ("qkv", "proj") if build is pretrain else ("in_proj", "out_proj")
    weights = dict(inner.named_parameters())
    options = dict(cell_size=4, rank=2, attention=attention, num_levels=2)
    fma = FMAttention(8, 2, ndim=2, num_global_tokens=1, value_gain=1, **options).eval()
    fma.qkv.weight = inner.qkv.weight if build is pretrain else inner.in_proj_weight
    fma.qkv.bias = inner.qkv.bias if build is pretrain else inner.in_proj_bias
    fma.proj.weight, fma.proj.bias = (weights[f"{names[1]}.{kind}"] for kind in ("weight", "bias"))
    convert_attention(original, **options)
    seen = []
    original.layers[1].attn.register_forward_hook(lambda module, args, out: seen.append((args[0], out)))
    original(images(LARGE))
    ((x, out),) = seen
    assert x.shape == (2, 1 + 18 * 10, 8)
    # mmcv's module is given the identity by its layer and adds it; the branch alone is the difference.
    expected = fma(x, (18, 10))
    if build is seg:
        torch.testing.assert_close(original.layers[1].attn(x), x + expected, rtol=1e-5, atol=1e-5)
    else:
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("build", [pretrain, seg])
def test_value_summaries_start_as_means_unless_asked_otherwise(build):
    for options, gain in ((dict(), 1), (dict(value_gain=0), 0)):
        model = convert_attention(trained(build), 4, **options)
        found = [p for name, p in model.named_parameters() if name.endswith("value_basis.axis0_level1")]
        assert found and all((parameter.sum(1) == gain).all() for parameter in found)


# --- which layers, which parameters


@pytest.mark.parametrize(
    ("layers", "chosen"),
    [(None, {0, 1, 2}), (0, {0}), (-1, {2}), ([0, -1], {0, 2}), (range(2), {0, 1}), ((1,), {1})],
)
def test_layers(layers, chosen):
    model = convert_attention(pretrain(), 4, layers=layers)
    found = {i for i, layer in enumerate(model.layers) if any(isinstance(m, CoreAttention) for m in layer.modules())}
    assert found == chosen


def test_layers_can_be_converted_one_after_the_other():
    model = trained(pretrain)
    convert_attention(model, 4, layers=0)
    convert_attention(model, 2, layers=[1, 2], attention="fma_linear")
    assert [layer.attn.scaled_dot_product_attention.cell_size for layer in model.layers] == [4, 2, 2]
    assert model(images(LARGE))[0].isfinite().all()


@pytest.mark.parametrize("build", [pretrain, seg])
def test_parameters_stay_and_only_bases_are_new(build):
    model = build().double()
    before = dict(model.named_parameters())
    convert_attention(model, 4, 2, num_levels=3)
    after = dict(model.named_parameters())
    assert all(after[name] is parameter for name, parameter in before.items())
    new = {name: parameter for name, parameter in after.items() if name not in before}
    assert all("_basis.axis" in name for name in new)
    # per layer: keys and values, two axes, of 2 x 4 weights per channel at level 1 and 2 x 4 at levels 2 and 3
    assert sum(parameter.numel() for parameter in new.values()) == 3 * 2 * 2 * 8 * (2 * 4 + 2 * (2 * 4))
    assert all(parameter.dtype == torch.float64 and parameter.requires_grad for parameter in new.values())


@pytest.mark.parametrize("attention", ["near", "full"])
@pytest.mark.parametrize("build", [pretrain, seg])
def test_controls_add_no_parameters(build, attention):
    model = build()
    before = dict(model.named_parameters())
    assert dict(convert_attention(model, 4, attention=attention).named_parameters()) == before


def test_backend_and_group_bias_reach_every_layer():
    model = convert_attention(pretrain(), 4, backend="reference", group_bias=False)
    cores = [module for module in model.modules() if isinstance(module, CoreAttention)]
    assert [(core.backend, core.group_bias) for core in cores] == [("reference", False)] * 3
    with pytest.raises(TypeError, match="positional"):
        convert_attention(pretrain(), 4, 1, "fma")


def test_frozen_layers_stay_frozen():
    model = convert_attention(pretrain(frozen_stages=1), 4)
    for i, layer in enumerate(model.layers):
        assert {parameter.requires_grad for parameter in layer.parameters()} == {i > 0}
        assert {module.training for module in layer.modules()} == {i > 0}


@pytest.mark.parametrize(
    ("options", "levels"),
    [(dict(), 2), (dict(num_levels=3), 3), (dict(cell_size=1), 2), (dict(cell_size=1, basis_kind="direct"), 2)],
)
def test_levels_are_those_of_the_image_size(options, levels):
    model = convert_attention(pretrain(), **(dict(cell_size=4) | options))  # nested bases have at least two
    assert model.layers[0].attn.scaled_dot_product_attention.key_basis.num_levels == levels
    model = convert_attention(seg(img_size=(30, 64)), 1)
    assert model.layers[0].attn.attn.key_basis.num_levels == 3  # 8 x 16 patches


def test_learning_rates_and_decay_by_layer_and_by_name():
    model = convert_attention(pretrain(), 2)
    cfg = dict(
        optimizer=dict(type="AdamW", lr=1.0, weight_decay=0.1),
        constructor="mmpretrain.LearningRateDecayOptimWrapperConstructor",
        paramwise_cfg=dict(layer_decay_rate=0.5, custom_keys={"_basis": dict(decay_mult=0.0)}),
    )
    groups = build_optim_wrapper(model, cfg).optimizer.param_groups
    bases = [group for group in groups if "_basis" in group["param_name"]]
    assert len(groups) == len(list(model.parameters())) and bases
    for group in bases:
        layer = int(group["param_name"].split(".")[1])
        assert (group["layer_id"], group["lr"], group["weight_decay"]) == (layer + 1, 0.5 ** (3 - layer), 0)


# --- checkpoints and copies


@pytest.mark.parametrize("build", [pretrain, seg])
def test_checkpoints(build):
    original = trained(build)
    converted = convert_attention(trained(build), 4)
    missing, unexpected = converted.load_state_dict(original.state_dict(), strict=False)
    assert not unexpected and missing and all("_basis" in name for name in missing)
    torch.testing.assert_close(flat(converted(images(SMALL))), flat(original(images(SMALL))))
    for parameter in converted.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    # A model for larger images has more levels, and with the same weights it makes the same function.
    larger = convert_attention(trained(build), 4, num_levels=4)
    larger.load_state_dict(converted.state_dict())
    x = images((140, 20))  # 35 x 5 patches, more than 2 * 4 * 2**2
    torch.testing.assert_close(flat(larger(x)), flat(converted(x)))


@pytest.mark.parametrize("build", [pretrain, seg])
def test_copies_are_independent(build):
    model = convert_attention(trained(build), 4)
    expected = flat(model(images(LARGE)))
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(model), torch.load(buffer, weights_only=False)):
        model(images(LARGE[::-1]))  # as many patches, in another shape
        torch.testing.assert_close(flat(other(images(LARGE))), expected)
        other(images(SMALL))
        torch.testing.assert_close(flat(model(images(LARGE))), expected)


@pytest.mark.parametrize("reentrant", [False, True], ids=["mmengine", "with_cp"])
def test_activation_checkpointing_with_images_of_several_sizes(reentrant):
    """Activations of the first image are computed again after the second one has passed."""
    plain = convert_attention(trained(seg), 4)
    recomputing = convert_attention(trained(seg, with_cp=reentrant), 4)
    if not reentrant:
        turn_on_activation_checkpointing(recomputing, ["layers.0", "layers.1", "layers.2"])
    gradients = []
    for model in (plain, recomputing):
        outputs = [*flat(model(images(LARGE))), *flat(model(images(SMALL)))]
        sum(out.square().sum() for out in outputs).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(*gradients)


def test_it_compiles_for_every_size_of_image():
    model = convert_attention(trained(seg, num_layers=1, out_indices=-1), 4)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager")
    for size in (LARGE, LARGE[::-1]):
        torch.testing.assert_close(flat(compiled(images(size))), flat(model(images(size))))


# --- inside larger models


def test_inside_a_classifier():
    backbone = dict(type="mmpretrain.VisionTransformer", arch=ARCH, img_size=32, patch_size=4)
    head = dict(type="mmpretrain.VisionTransformerClsHead", num_classes=5, in_channels=8)
    model = mmpretrain.models.ImageClassifier(backbone=backbone, head=head)
    assert convert_attention(model, 2) is model
    assert model(images(LARGE)).shape == (2, 5)
    assert any("backbone.layers.0.attn.scaled_dot_product" in name for name, _ in model.named_parameters())


def test_inside_a_segmentor():
    head = dict(type="mmseg.FCNHead", in_channels=8, in_index=1, channels=8, num_convs=1, num_classes=4)
    backbone = dict(type="mmseg.VisionTransformer", img_size=32, patch_size=4, embed_dims=8, num_layers=3, num_heads=2)
    model = mmseg.models.EncoderDecoder(backbone=backbone | dict(out_indices=(0, 2)), decode_head=head)
    convert_attention(model, 2)
    assert model(images(LARGE)).shape == (2, 4, 18, 10)


def test_masked_pretraining_that_keeps_the_grid():
    model = convert_attention(MaskFeatViT(arch=ARCH, img_size=32, patch_size=4), 2)
    assert model(images((32, 32)), torch.rand(2, 64) < 0.5).shape == (2, 65, 8)


# --- mistakes


def other_scale():
    model = pretrain()
    model.layers[1].attn = mmpretrain.models.utils.MultiheadAttention(8, 2, qk_scale=0.5)
    return model


def beit():
    return mmseg.models.BEiT(img_size=32, patch_size=4, embed_dims=8, num_layers=1, num_heads=2)


def further_keys(**options):
    model = seg()
    model.layers[1].attn.attn = nn.MultiheadAttention(8, 2, **options)
    return model


def structure(model):
    """All that a conversion changes: modules, and the hooks on them."""
    hooks = [len(module._forward_hooks) for module in model.modules()] if model is not None else []
    return str(model), hooks


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (lambda: None, {}, "model='NoneType'.*torch.nn.Module"),
        (lambda: nn.Linear(2, 2), {}, "model='Linear'.*VisionTransformer of mmpretrain or mmseg"),
        (beit, {}, "model='BEiT'.*relative position bias"),
        (lambda: nn.ModuleList([pretrain(), seg()]), {}, r"model='ModuleList'.*one VisionTransformer.*\['0', '1'\]"),
        (lambda: pretrain("ViTEVA02", arch=ARCH), {}, "layers.0.attn='AttentionWithRoPE'.*plain self-attention"),
        (other_scale, {}, "layers.1.attn.scaled_dot_product_attention=.*qk_scale=None"),
        (lambda: further_keys(add_bias_kv=True), {}, "layers.1.attn.attn.bias_k.*add_bias_kv=False"),
        (lambda: further_keys(add_zero_attn=True), {}, "layers.1.attn.attn.add_zero_attn=True"),
        (lambda: further_keys(kdim=4), {}, r"layers.1.attn.attn.kdim and vdim=\(4, 8\).*embed_dim=8"),
        (lambda: convert_attention(pretrain(), 4, layers=1), {}, "layers.1.attn='FMA'.*not converted before"),
        (lambda: convert_attention(seg(), 4, layers=1), {}, "layers.1.attn='FMA'.*not converted before"),
        (pretrain, dict(attention="linear"), "attention='linear'.*full, near, fma, fma_linear, none"),
        (pretrain, dict(rank=3), "rank=3.*divisor of cell_size"),
        (pretrain, dict(cell_size=0), "cell_size=0"),
        (pretrain, dict(basis_kind="max"), "'max'.*nested"),
        (pretrain, dict(backend="fast"), "backend='fast'"),
        (pretrain, dict(layers=3), "layers=3.*-3 to 2"),
        (pretrain, dict(layers=[0, -3]), r"layers=\[0, -3\].*different"),
        (pretrain, dict(layers=[]), r"layers=\[\]"),
        (pretrain, dict(layers=True), "layers=True"),
        (pretrain, dict(layers="all"), "layers='all'"),
    ],
)
def test_mistakes_change_nothing(model, options, message):
    model = model()
    before = structure(model)
    with pytest.raises(ValueError, match=message):
        convert_attention(model, **(dict(cell_size=4) | options))
    assert structure(model) == before


def test_tokens_that_are_not_an_image_are_refused():
    model = convert_attention(MAEViT(arch=ARCH, img_size=32, patch_size=4), 4)
    with pytest.raises(ValueError, match=r"number of patches=16: expected all those of an image, one of \[64\]"):
        model(images((32, 32)), mask=True)
    with pytest.raises(ValueError, match="number of patches=16"):
        convert_attention(pretrain(), 4).layers[0](torch.zeros(1, 17, 8))
    assert math.prod(model(images((32, 32)), mask=None)[0].shape) == 2 * 65 * 8


def test_masks_are_refused():
    attention = convert_attention(seg(), 4).layers[0].attn
    with pytest.raises(ValueError, match=r"attn_mask='a mask': expected None"):
        attention(torch.zeros(1, 17, 8), attn_mask=torch.zeros(17, 17))
