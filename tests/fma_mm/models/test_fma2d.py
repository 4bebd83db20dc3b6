import math
import re
from itertools import product

import pytest
import torch
from helpers import flops_by_hand
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from torch import nn

from fma_kernels import CoreAttention, Hierarchy, SummaryBasis
from fma_mm import FMA2D

ARCH = dict(embed_dims=8, depths=(1, 1, 2, 1), num_heads=(1, 2, 2, 4))
ALL = (0, 1, 2, 3)


def small(**kwargs) -> FMA2D:
    """Two far levels in the first stage at 64x64, one in the second."""
    torch.manual_seed(0)
    return FMA2D(**(dict(arch=ARCH, img_size=64, cell_sizes=2, drop_path_rate=0.0) | kwargs))


def randomised(model: nn.Module) -> nn.Module:
    """Give every weight, the summary bases included, a value of its own."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


# ---------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(recompute="attention"), "recompute='attention': expected one of nothing, activations, ffn"),
        (dict(arch="huge"), r"arch='huge'.*'base', 'large', 'small', 'tiny'"),
        (dict(arch=dict(embed_dims=8, depths=(1,))), r"arch=.*'depths', 'embed_dims', 'num_heads'"),
        (dict(arch=ARCH | dict(depths=(1, 0, 1, 1))), r"arch\['depths'\]=\(1, 0, 1, 1\).*at least one block"),
        (dict(arch=ARCH | dict(num_heads=(1, 2))), r"arch\['num_heads'\]=\(1, 2\).*one number per stage, 4"),
        (dict(arch=ARCH | dict(num_heads=(1, 3, 2, 4))), r"arch\['num_heads'\].*divisor of 16 in stage 1"),
        (dict(patch_sizes=(7, 3)), r"patch_sizes=\(7, 3\).*one value per stage, 4"),
        (dict(strides=(4, 2)), r"strides=\(4, 2\).*one value per stage, 4"),
        (dict(cell_sizes=(7, 7, 7)), r"cell_sizes=\(7, 7, 7\).*one value per stage, 4"),
        (dict(cell_sizes=4, ranks=(1, 2, 3, 4)), r"rank=3.*divisor of cell_size, which is 4"),
        (dict(attention="window"), r"attention='window'.*one of full, near, fma, fma_linear"),
        (dict(backend="cuda"), r"backend='cuda'.*torch"),
        (dict(aggregation="mean"), r"aggregation='mean': expected an argument of FMA2D, .*basis_kind.*backend"),
        (dict(num_levels=2), r"num_levels=2: expected an argument of FMA2D"),
        (dict(drop_path_rate=1.0), r"drop_path_rate=1.0.*\[0, 1\)"),
        (dict(out_indices=(4,)), r"out_indices=\(4,\).*from -4 to 3"),
        (dict(out_indices=(3, -1)), r"out_indices=\(3, -1\).*at most once"),
        (dict(out_indices=()), r"out_indices=\(\).*at least one stage"),
        (dict(frozen_stages=4), r"frozen_stages=4.*-1 for none"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        FMA2D(**(dict(arch=ARCH) | kwargs))


def test_custom_arch_with_any_number_of_stages():
    model = FMA2D(
        arch=dict(embed_dims=12, depths=[2, 1], num_heads=[3, 2]),
        in_channels=1,
        patch_sizes=(4, 2),
        strides=(4, 2),
        cell_sizes=(4, 2),
        ranks=(2, 1),
        out_indices=(0, 1),
        ffn_ratio=3,
        layer_scale_init_value=0.5,
    )
    assert [tuple(x.shape) for x in model(torch.rand(1, 1, 32, 40))] == [(1, 12, 8, 10), (1, 24, 4, 5)]
    assert [len(stage.blocks) for stage in model.stages] == [2, 1]
    block = model.stages[0].blocks[0]
    assert (block.attn.attention.key_basis.cell_size, block.attn.attention.key_basis.rank) == (4, 2)
    assert block.ffn.fc1.out_features == 36
    assert (block.scale1.weight == 0.5).all()


@pytest.mark.parametrize("img_size, levels", [(64, 2), (256, 4), ((64, 512), 5), (16, 2)])
def test_img_size_sets_the_levels_that_are_built(img_size, levels):
    """16, 64 and 128 tokens are at most two cells of side 2 * 2**L from L = 2, 4 and 5 on; two are always built."""
    model = FMA2D(arch=ARCH, img_size=img_size, cell_sizes=2)
    assert model.stages[0].blocks[0].attn.attention.key_basis.num_levels == levels


def test_options_of_the_attention_reach_every_block():
    options = dict(attention="fma_linear", basis_kind="mean", qk_scale=0.3, group_bias=False, backend="reference")
    cores = [m for m in small(share_heads=True, qkv_bias=False, **options).modules() if isinstance(m, CoreAttention)]
    assert len(cores) == 5
    for core in cores:
        assert (core.attention, core.basis_kind, core.scale) == ("fma_linear", "mean", 0.3)
        assert (core.group_bias, core.backend) == (False, "reference")
    attention = small(share_heads=True, qkv_bias=False).stages[0].blocks[0].attn
    assert attention.qkv.bias is None and attention.attention.key_basis.share_heads


def test_backend_and_group_bias_of_a_config_change_what_is_computed():
    image = torch.rand(1, 3, 64, 64)
    model = randomised(small()).eval()
    outs = {}
    for backend, group_bias in [("reference", True), ("torch", True), ("torch", False)]:
        config = dict(type="FMA2D", arch=ARCH, img_size=64, cell_sizes=2, backend=backend, group_bias=group_bias)
        other = MODELS.build(config)
        other.load_state_dict(model.state_dict())
        (outs[backend, group_bias],) = other.eval()(image)
    torch.testing.assert_close(outs["reference", True], outs["torch", True], rtol=1e-4, atol=1e-4)
    assert (outs["torch", False] - outs["torch", True]).abs().max() > 1e-2


@pytest.mark.parametrize("attention", ["near", "full"])
def test_controls_start_from_the_weights_of_fma_without_the_bases(attention):
    states = []
    for name in ("fma", attention):
        model = small(attention=name, out_indices=ALL)
        model.init_weights()
        states.append(model.state_dict())
    fma, control = states
    assert list(control) == [name for name in fma if "_basis" not in name] != list(fma)
    assert all(torch.equal(control[name], fma[name]) for name in control)


# ---------------------------------------------------------------------- maps


@pytest.mark.parametrize("size", [(64, 64), (256, 309), (33, 20), (8, 200)])
def test_shapes_of_all_stages_on_any_input(size):
    model = small(out_indices=ALL).eval()
    outs = model(torch.rand(2, 3, *size))
    assert isinstance(outs, tuple)
    for i, out in enumerate(outs):
        assert tuple(out.shape) == (2, 8 * 2**i, *(math.ceil(n / (4 * 2**i)) for n in size))
        assert out.is_contiguous() and out.isfinite().all()


def test_out_indices_choose_maps_and_norms():
    full = randomised(small(out_indices=ALL)).eval()
    x = torch.rand(1, 3, 64, 48)
    expected = full(x)
    for indices in [(-1,), (0, -1), (1,), [2, 0], -2]:
        model = small(out_indices=indices).eval()
        wanted = sorted(i % 4 for i in ([indices] if isinstance(indices, int) else indices))
        names = {name for name, _ in model.named_children() if name.startswith("norm")}
        assert names == {f"norm{i}" for i in wanted}
        model.load_state_dict(full.state_dict(), strict=False)
        torch.testing.assert_close(model(x), tuple(expected[i] for i in wanted), rtol=0, atol=0)


@pytest.mark.parametrize("attention", ["fma", "fma_linear", "full", "near"])
def test_every_output_sees_every_pixel_unless_it_reads_the_near_field_alone(attention):
    model = FMA2D(
        arch=dict(embed_dims=8, depths=(1,), num_heads=(2,)),
        patch_sizes=(7,),
        strides=(4,),
        cell_sizes=2,
        attention=attention,
    )
    randomised(model).eval()
    image = torch.rand(1, 3, 64, 80, requires_grad=True)
    (out,) = model(image)
    assert Hierarchy(tuple(out.shape[2:]), 2).num_levels >= 2
    for row, column in [(0, 0), (7, 11), (15, 19)]:
        (grad,) = torch.autograd.grad(out[0, :, row, column].square().sum(), image, retain_graph=True)
        seen = (grad.abs().sum(1) > 0).float().mean()
        assert seen < 0.5 if attention == "near" else seen == 1


def test_direct_summaries_refuse_images_with_more_levels_than_were_built():
    model = small(basis_kind="direct").eval()
    assert model(torch.rand(1, 3, 64, 64))[0].isfinite().all()
    with pytest.raises(ValueError, match=r"num_levels=2.*at least 3"):
        model(torch.rand(1, 3, 64, 128))


@pytest.mark.parametrize("attention", ["fma", "fma_linear"])
def test_mixed_precision(attention):
    model = randomised(small(attention=attention))
    image = torch.rand(2, 3, 64, 64)
    (exact,) = model(image)
    with torch.autocast("cpu", torch.bfloat16):
        (out,) = model(image)
    assert ((out - exact).square().mean() / exact.square().mean()).sqrt() < 0.05
    out.float().square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_export_with_any_batch_size():
    model = randomised(small()).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (torch.rand(2, 3, 64, 80),), dynamic_shapes={"x": {0: batch}}).module()
    for size in (1, 3):
        image = torch.rand(size, 3, 64, 80)
        torch.testing.assert_close(program(image), model(image))


# ---------------------------------------------------------------------- weights


def test_init_weights():
    model = FMA2D(arch=ARCH | dict(embed_dims=32), img_size=64, cell_sizes=4, ranks=2)
    randomised(model).init_weights()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.1)
            assert not module.bias.any()
        elif isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            assert module.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.15)

    fresh = FMA2D(arch=ARCH, img_size=64, cell_sizes=4, ranks=2)
    before = {name: p.clone() for name, p in fresh.named_parameters() if "_basis" in name}
    fresh.init_weights()
    assert before
    for name, parameter in fresh.named_parameters():
        if name in before:
            assert torch.equal(parameter, before[name])


def test_checkpoint_of_a_classifier_serves_another_resolution(tmp_path):
    trained = randomised(small(out_indices=-1)).eval()
    torch.save({"state_dict": {f"backbone.{k}": v for k, v in trained.state_dict().items()}}, tmp_path / "ckpt.pth")
    pretrained = dict(type="Pretrained", checkpoint=str(tmp_path / "ckpt.pth"), prefix="backbone.")
    model = small(img_size=256, out_indices=ALL, init_cfg=pretrained).eval()
    model.init_weights()
    assert len(model.state_dict()) > len(trained.state_dict())  # more levels were built
    image = torch.rand(1, 3, 232, 256)
    torch.testing.assert_close(model(image)[-1], trained(image)[0])


@pytest.mark.parametrize(
    ("attention", "basis_kind"),
    [*product(["fma", "fma_linear"], ["nested", "direct", "mean"]), ("near", "nested"), ("full", "nested")],
)
def test_every_parameter_has_a_finite_gradient(attention, basis_kind):
    model = small(attention=attention, basis_kind=basis_kind, out_indices=ALL, layer_scale_init_value=0.1)
    sum(out.square().mean() for out in model(torch.rand(2, 3, 64, 64))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    used = model.stages[0].blocks[0].attn
    assert all(parameter.grad.any() for parameter in used.parameters())


def test_value_summaries_start_as_means_unless_the_config_says_otherwise():
    for options, gain in ((dict(), 1), (dict(value_gain=0), 0)):
        basis = small(**options).stages[0].blocks[0].attn.attention.value_basis
        assert (basis.axis0_level1.sum(1) == gain).all() and (basis.axis1_level1.sum(1) == 1).all()


@pytest.mark.parametrize(
    "options",
    [
        dict(), dict(with_cp=True), dict(recompute="nothing"), dict(recompute="ffn"), dict(attention="fma_linear"),
        dict(attention="near"), dict(attention="full"),
    ],
)
def test_distributed_training_finds_every_parameter_used(tmp_path, options):
    """Without ``find_unused_parameters``, which fails at the second step if a parameter took no part in the first."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(small(**options))
        for size in (32, 64, 48):
            model(torch.rand(1, 3, size, size))[0].square().sum().backward()
    finally:
        torch.distributed.destroy_process_group()


RECOMPUTING = pytest.mark.parametrize(
    "options", [dict(recompute="activations"), dict(recompute="ffn"), dict(with_cp=True)], ids=str
)


@RECOMPUTING
@pytest.mark.parametrize("random", [dict(), dict(drop_path_rate=0.3, drop_rate=0.2)], ids=["no", "dropout"])
def test_recomputing_changes_nothing(options, random):
    """The same bits, also of what is dropped; checkpoints fit each other."""
    plain, recomputing = (
        randomised(small(**random, **given)).train() for given in (dict(recompute="nothing"), options)
    )
    recomputing.load_state_dict(plain.state_dict())
    results = []
    for model in (plain, recomputing):
        torch.manual_seed(2)
        image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1), requires_grad=True)
        (out,) = model(image)
        out.square().sum().backward()
        results.append([out, image.grad, *(parameter.grad for parameter in model.parameters()), torch.rand(1)])
    torch.testing.assert_close(*results, rtol=0, atol=0)


@RECOMPUTING
def test_recomputing_compiles(options):
    model = small(**options)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    results = []
    for function in (model, compiled):
        out = function(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)))[0]
        results.append([out, *torch.autograd.grad(out.square().sum(), list(model.parameters()), allow_unused=True)])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


def test_recomputing_blocks_stores_less():
    stored = []
    for with_cp in (False, True):
        model, count = small(recompute="nothing", with_cp=with_cp), []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, n=count: n.append(x.numel()) or x, lambda x: x):
            model(torch.rand(1, 3, 64, 64))
        stored.append(sum(count))
    assert stored[1] < stored[0] / 4


def test_drop_path_grows_linearly_over_the_blocks():
    model = small(arch=ARCH | dict(depths=(1, 2, 3, 1)), drop_path_rate=0.3)
    rates = [block.drop_path.drop_prob for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx([0.05 * i for i in range(7)])


@pytest.mark.parametrize("frozen_stages", [-1, 0, 2, 3])
def test_frozen_stages_stay_frozen(frozen_stages):
    model = small(frozen_stages=frozen_stages, out_indices=ALL, drop_path_rate=0.5, drop_rate=0.5)
    model.train()
    for i in ALL:
        frozen = i <= frozen_stages
        for module in (model.stages[i], getattr(model, f"norm{i}")):
            assert all(child.training is not frozen for child in module.modules())
            assert all(parameter.requires_grad is not frozen for parameter in module.parameters())
    outs, again = (model(torch.ones(1, 3, 64, 64)) for _ in range(2))
    for i in range(frozen_stages + 1):
        torch.testing.assert_close(outs[i], again[i], rtol=0, atol=0)
    if frozen_stages < 3:
        assert not torch.equal(outs[3], again[3])


def test_parameter_names_mean_what_they_say():
    """Optimizer settings select parameters by substrings of their names."""
    model = small(out_indices=ALL, layer_scale_init_value=0.1)
    norms = {name for name, module in model.named_modules() if isinstance(module, nn.LayerNorm)}
    bases = {name for name, module in model.named_modules() if isinstance(module, SummaryBasis)}
    for name, _ in model.named_parameters():
        owner = name.rpartition(".")[0]
        assert "head" not in name and "pos_block" not in name
        assert ("norm" in name) == (owner in norms)
        assert ("_basis" in name) == (owner in bases)


def test_layer_depth():
    model = small(arch=ARCH | dict(depths=(1, 2, 3, 1)), out_indices=ALL)
    depth = {name: model.get_layer_depth(f"backbone.{name}", "backbone.") for name, _ in model.named_parameters()}
    assert {total for _, total in depth.values()} == {9}
    assert {layer for layer, _ in depth.values()} == set(range(9))
    assert depth["stages.0.patch_embed.projection.weight"][0] == 0
    assert depth["stages.0.blocks.0.attn.qkv.weight"][0] == 1
    assert depth["stages.2.patch_embed.norm.bias"][0] == 3
    assert depth["stages.2.blocks.1.ffn.fc1.weight"][0] == 5
    assert depth["stages.3.blocks.0.ffn.fc1.weight"][0] == 7
    assert depth["norm0.weight"][0] == 8
    assert model.get_layer_depth("head.fc.weight", "backbone.") == (8, 9)


def test_layer_wise_learning_rates_in_mmpretrain():
    from mmpretrain.models import ImageClassifier

    classifier = ImageClassifier(
        backbone=small(),
        neck=dict(type="GlobalAveragePooling"),
        head=dict(type="LinearClsHead", num_classes=2, in_channels=64),
    )
    wrapper = build_optim_wrapper(
        classifier,
        dict(
            optimizer=dict(type="AdamW", lr=1.0, weight_decay=0.05),
            constructor="mmpretrain.LearningRateDecayOptimWrapperConstructor",
            paramwise_cfg=dict(layer_decay_rate=0.5),
        ),
    )
    rates = {group["param_name"]: group["lr"] for group in wrapper.param_groups if "param_name" in group}
    assert rates["head.fc.weight"] == 1
    assert rates["backbone.stages.3.blocks.0.attn.proj.weight"] == 0.5
    assert rates["backbone.stages.0.patch_embed.projection.weight"] == 0.5**6


# ---------------------------------------------------------------------- figures in the documentation


def documented() -> dict[str, tuple[int, float]]:
    """Parameters and GFLOPs of every architecture as the class's documentation states them."""
    rows = re.findall(r"^ +(\w+) +\d+ +[\d, ]+? {2,}[\d, ]+? {2,}([\d,]+) +([\d.]+) G$", FMA2D.__doc__, re.MULTILINE)
    return {arch: (int(parameters.replace(",", "")), float(flops)) for arch, parameters, flops in rows}


def test_documentation_has_every_architecture():
    assert documented().keys() == FMA2D.arch_zoo.keys()


@pytest.mark.parametrize("arch", FMA2D.arch_zoo)
def test_documented_parameters_and_flops(arch):
    parameters, gflops = documented()[arch]
    with torch.device("meta"):
        model = FMA2D(arch=arch)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    settings = FMA2D.arch_zoo[arch]
    assert f"{flops_by_hand.fma2d(settings['embed_dims'], settings['depths']) / 1e9:.2f}" == f"{gflops:.2f}"


def test_documented_example():
    outs = MODELS.build(dict(type="FMA2D", arch="tiny", out_indices=ALL))(torch.rand(1, 3, 256, 309))
    shapes = [tuple(out.shape) for out in outs]
    assert str(shapes) in FMA2D.__doc__
