"""Configs of mmpretrain and mmseg whose vision transformer is converted before the run."""

import math
from pathlib import Path
from types import SimpleNamespace

import mmpretrain.models
import pytest
import torch
import torch.distributed
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.hooks import EMAHook, Hook
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import DATASETS, HOOKS
from mmengine.runner import FlexibleRunner, Runner, loops
from mmpretrain.structures import DataSample

from fma_kernels import CoreAttention
from fma_mm import ConvertAttentionHook

BACKBONE = dict(
    type="mmpretrain.VisionTransformer",
    arch=dict(embed_dims=8, num_layers=2, num_heads=2, feedforward_channels=16),
    img_size=32,
    patch_size=4,
)


@pytest.fixture(autouse=True)
def quick(one_thread, monkeypatch):
    """One thread for models this small, and no wait of mmengine between epochs."""
    monkeypatch.setattr(loops, "time", SimpleNamespace(sleep=lambda seconds: None))


@DATASETS.register_module()
class FourImages(BaseDataset):
    """Noise of two classes, made in memory."""

    def load_data_list(self):
        return [dict(number=i) for i in range(4)]

    def prepare_data(self, idx):
        image = torch.randint(0, 256, (3, 32, 32), generator=torch.Generator().manual_seed(idx), dtype=torch.uint8)
        return dict(inputs=image, data_samples=DataSample().set_gt_label(idx % 2))


@HOOKS.register_module()
class ModelOfBeforeRun(Hook):
    """Keeps the parameters that the model has when hooks take what they need from it."""

    def before_run(self, runner):
        self.names = dict(runner.model.named_parameters()).keys()


def make_config(work_dir: Path, **changes) -> Config:
    loader = dict(batch_size=2, dataset=dict(type="FourImages"), sampler=dict(type="DefaultSampler", shuffle=False))
    return Config(
        dict(
            default_scope="mmpretrain",
            model=dict(
                type="ImageClassifier",
                data_preprocessor=dict(mean=[120.0] * 3, std=[60.0] * 3, num_classes=2),
                backbone=BACKBONE | changes.pop("backbone", {}),
                head=dict(type="VisionTransformerClsHead", num_classes=2, in_channels=8),
            ),
            train_dataloader=loader | dict(collate_fn=dict(type="default_collate")),
            test_dataloader=loader | dict(collate_fn=dict(type="default_collate")),
            train_cfg=dict(by_epoch=False, max_iters=2),
            test_cfg=dict(),
            test_evaluator=dict(type="Accuracy"),
            optim_wrapper=dict(optimizer=dict(type="AdamW", lr=0.1, weight_decay=0.1)),
            custom_hooks=[dict(type="ModelOfBeforeRun"), dict(type="ConvertAttentionHook", cell_size=2)],
            work_dir=str(work_dir),
            experiment_name=work_dir.name,
        )
        | changes
    )


def bases(model) -> dict[str, torch.Tensor]:
    return {name: p for name, p in model.named_parameters() if "_basis" in name}


def converted(model) -> int:
    return sum(isinstance(module, CoreAttention) for module in model.modules())


def test_the_optimizer_is_that_of_the_config_for_all_parameters(tmp_path):
    cfg = make_config(
        tmp_path,
        optim_wrapper=dict(
            optimizer=dict(type="AdamW", lr=0.1, weight_decay=0.1),
            paramwise_cfg=dict(custom_keys={"_basis": dict(decay_mult=0.0, lr_mult=0.5)}),
        ),
        param_scheduler=[dict(type="MultiStepLR", milestones=[1], gamma=0.1, by_epoch=False)],
        auto_scale_lr=dict(base_batch_size=4, enable=True),
    )
    runner = Runner.from_cfg(cfg)
    runner.train()
    groups = runner.optim_wrapper.optimizer.param_groups
    parameters = dict(runner.model.named_parameters())
    new = bases(runner.model)
    assert converted(runner.model) == 2 and len(new) == 2 * 2 * 2 * 2
    assert {id(p) for group in groups for p in group["params"]} == {id(p) for p in parameters.values()}
    undecayed = [p for group in groups if group["weight_decay"] == 0 for p in group["params"]]
    assert {id(p) for p in undecayed} == {id(p) for p in new.values()}
    # half the batch size; the base learning rate of the bases is half; a tenth after the first iteration
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    for name, parameter in parameters.items():
        assert math.isclose(rates[id(parameter)], 0.1 * 0.1 * (0.25 if name in new else 0.5)), name
    (scheduler,) = runner.param_schedulers
    assert scheduler.optimizer is runner.optim_wrapper
    assert any(not torch.equal(p.sum(1), torch.ones_like(p[:, 0])) for p in new.values()), "they are trained"


def test_other_hooks_find_the_converted_model(tmp_path):
    runner = Runner.from_cfg(make_config(tmp_path))
    (hook,) = (hook for hook in runner.hooks if isinstance(hook, ModelOfBeforeRun))
    runner.train()
    assert any("_basis" in name for name in hook.names)


def test_the_control_trains_like_the_original(tmp_path):
    weights = []
    for hooks in ([], [dict(type="ConvertAttentionHook", cell_size=2, attention="full")]):
        options = dict(custom_hooks=hooks, randomness=dict(seed=0))
        # Adam would turn the rounding of gradients that are 0 into whole steps.
        options["optim_wrapper"] = dict(optimizer=dict(type="SGD", lr=0.1))
        runner = Runner.from_cfg(make_config(tmp_path / f"{len(hooks)}", **options))
        runner.train()
        assert converted(runner.model) == 2 * len(hooks)
        weights.append(dict(runner.model.named_parameters()))
    original, control = weights
    torch.testing.assert_close(control, original, rtol=1e-4, atol=1e-5)


def test_one_runner_can_train_and_test(tmp_path):
    runner = Runner.from_cfg(make_config(tmp_path))
    runner.train()
    weights = {name: p.detach().clone() for name, p in runner.model.named_parameters()}
    runner.test()
    assert converted(runner.model) == 2
    for name, parameter in runner.model.named_parameters():
        assert torch.equal(parameter, weights[name]), name


@pytest.mark.parametrize("source", ["init_cfg", "load_from"])
def test_weights_of_the_original_are_the_start(tmp_path, source):
    original = mmpretrain.models.VisionTransformer(**{k: v for k, v in BACKBONE.items() if k != "type"})
    for parameter in original.parameters():
        torch.nn.init.normal_(parameter)
    path = str(tmp_path / "original.pth")
    torch.save(dict(state_dict={f"backbone.{name}": p for name, p in original.state_dict().items()}), path)
    changes = dict(optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.0)))
    if source == "init_cfg":
        changes["backbone"] = dict(init_cfg=dict(type="Pretrained", checkpoint=path, prefix="backbone."))
    else:
        changes["load_from"] = path
    runner = Runner.from_cfg(make_config(tmp_path, **changes))
    runner.train()
    assert converted(runner.model) == 2
    now = runner.model.backbone.state_dict()
    for name, value in original.state_dict().items():
        assert torch.equal(now[name], value), name
    for parameter in bases(runner.model).values():
        torch.testing.assert_close(parameter.sum(1), torch.ones_like(parameter[:, 0]))


@pytest.fixture
def process_group(tmp_path):
    """Distributed training of one process."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_the_distributed_wrapper_is_renewed(tmp_path, process_group, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    # On a CPU no device is named; the rest is what Runner does for a launcher.
    wrapper = dict(type="MMDistributedDataParallel", device_ids=None)
    runner = Runner.from_cfg(make_config(tmp_path, model_wrapper_cfg=wrapper))
    monkeypatch.setattr(runner, "_distributed", True)
    runner.model = before = runner.wrap_model(runner.cfg.model_wrapper_cfg, runner.model)
    runner.train()
    assert isinstance(runner.model, MMDistributedDataParallel) and runner.model is not before
    assert runner.model.module is before.module and converted(runner.model) == 2
    # Its reducer takes care of every parameter, and its gradients reached every one.
    assert len(runner.model._module_parameters) == len(list(runner.model.parameters()))
    assert all(len(state) for state in map(runner.optim_wrapper.optimizer.state.get, runner.model.parameters()))


# --- mistakes


def test_bad_options_are_refused_by_name():
    with pytest.raises(TypeError, match="cellsize"):
        ConvertAttentionHook(7, cellsize=7)
    with pytest.raises(TypeError, match="cell_size"):
        ConvertAttentionHook()


def test_a_model_without_a_vision_transformer_is_refused(tmp_path):
    cfg = make_config(tmp_path)
    cfg.model.backbone = dict(type="ResNet", depth=18)
    with pytest.raises(ValueError, match=r"model='ImageClassifier'.*a VisionTransformer of mmpretrain or mmseg"):
        Runner.from_cfg(cfg).train()


def test_runners_that_cannot_take_it_are_refused(tmp_path):
    runner = FlexibleRunner.from_cfg(make_config(tmp_path, runner_type="FlexibleRunner", env_cfg=dict()))
    with pytest.raises(ValueError, match="runner_type='FlexibleRunner': expected Runner"):
        runner.train()
    runner = Runner.from_cfg(make_config(tmp_path))
    runner.cfg.optim_wrapper = None
    with pytest.raises(ValueError, match=r"runner.cfg.optim_wrapper=None: expected the config of the optimizer"):
        runner.train()
    assert converted(runner.model) == 0


# --- through the tools

CLASSIFIER = """
default_scope = "mmpretrain"
data_preprocessor = dict(num_classes=1000, mean=[120.0] * 3, std=[60.0] * 3)
model = dict(
    type="ImageClassifier",
    backbone=dict(type="VisionTransformer", img_size=32, patch_size=4, drop_rate=0.1, drop_path_rate=0.3,
                  arch=dict(embed_dims=8, num_layers=2, num_heads=2, feedforward_channels=16)),
    head=dict(type="VisionTransformerClsHead", num_classes=1000, in_channels=8),
)
pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="RandomResizedCrop", scale=32),
    dict(type="PackInputs"),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    dataset=dict(type="ImageNet", data_root="{data}", split="train", pipeline=pipeline),
    sampler=dict(type="DefaultSampler", shuffle=True),
)
test_dataloader = dict(
    batch_size=4,
    num_workers=0,
    dataset=dict(type="ImageNet", data_root="{data}", split="val", pipeline=pipeline),
    sampler=dict(type="DefaultSampler", shuffle=False),
)
test_evaluator = dict(type="Accuracy", topk=(1,))
visualizer = dict(type="UniversalVisualizer", vis_backends=[dict(type="LocalVisBackend")])
train_cfg = dict(by_epoch=False, max_iters=4)
"""

SEGMENTOR = """
default_scope = "mmseg"
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(type="SegDataPreProcessor", mean=[120.0] * 3, std=[60.0] * 3, size=(32, 32), pad_val=0,
                           seg_pad_val=255),
    backbone=dict(type="VisionTransformer", img_size=(32, 32), patch_size=4, embed_dims=8, num_layers=2, num_heads=2,
                  drop_path_rate=0.3, with_cp=True),
    decode_head=dict(type="FCNHead", in_channels=8, channels=8, num_convs=1, num_classes=150, norm_cfg=dict(type="BN"),
                     loss_decode=dict(type="CrossEntropyLoss")),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)
load = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations", reduce_zero_label=True)]
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(type="ADE20KDataset", data_root="{data}",
                 pipeline=[*load, dict(type="RandomCrop", crop_size=(32, 32)), dict(type="PackSegInputs")],
                 data_prefix=dict(img_path="images/training", seg_map_path="annotations/training")),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="ADE20KDataset", data_root="{data}", pipeline=[*load, dict(type="PackSegInputs")],
                 data_prefix=dict(img_path="images/validation", seg_map_path="annotations/validation")),
)
test_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
visualizer = dict(type="SegLocalVisualizer", vis_backends=[dict(type="LocalVisBackend")])
train_cfg = dict(type="IterBasedTrainLoop", max_iters=4)
"""

COMMON = """
custom_imports = dict(imports=["fma_mm"], allow_failed_imports=False)
custom_hooks = [
    dict(type="EMAHook", momentum=0.1),
    dict(type="ConvertAttentionHook", cell_size=2, rank=2, attention="fma_linear", layers=[0, -1]),
]
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-2), clip_grad=dict(max_norm=5.0))
param_scheduler = [dict(type="PolyLR", eta_min=0, power=1.0, begin=0, end=4, by_epoch=False)]
test_cfg = dict()
default_hooks = dict(checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=2))
randomness = dict(seed=3)
"""


def read(path: Path) -> dict:
    checkpoint = torch.load(path, weights_only=False)
    return {key: checkpoint[key] for key in ("state_dict", "ema_state_dict", "optimizer")}


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["mmpretrain", "mmseg"])
def test_tools_train_resume_and_test(train, evaluate, tmp_path, request, capfd, scope):
    text, data = dict(mmpretrain=(CLASSIFIER, "imagenet"), mmseg=(SEGMENTOR, "ade20k"))[scope]
    config = tmp_path / "config.py"
    config.write_text(text.replace("{data}", str(request.getfixturevalue(data))) + COMMON)
    whole, resumed, tested = (tmp_path / name for name in ("whole", "resumed", "tested"))

    def options(work_dir):
        return ["--work-dir", str(work_dir), "--cfg-options", f"experiment_name={work_dir.name}"]

    train.main([str(config), *options(whole)])
    train.main([str(config), *options(resumed), "--resume", str(whole / "iter_2.pth")])
    first, mine, theirs = (read(path) for path in (whole / "iter_2.pth", resumed / "iter_4.pth", whole / "iter_4.pth"))
    for key in ("state_dict", "ema_state_dict"):
        assert mine[key].keys() == theirs[key].keys()
        names = [name for name in theirs[key] if "_basis" in name]
        assert len(names) == 2 * 3 * 2 * 2  # layers, bases, axes, levels
        for name, value in theirs[key].items():
            assert torch.equal(mine[key][name], value), (key, name)
        assert any(not torch.equal(first[key][name], theirs[key][name]) for name in names), "they are trained"
    for number, state in theirs["optimizer"]["state"].items():
        assert torch.equal(mine["optimizer"]["state"][number]["exp_avg_sq"], state["exp_avg_sq"])

    capfd.readouterr()
    arguments = evaluate.make_parser().parse_args([str(config), str(whole / "iter_4.pth"), *options(tested)])
    runner = evaluate.cli.build_runner(evaluate.make_config(arguments))
    metrics = runner.test()
    output = capfd.readouterr()
    assert not any(word in output.out + output.err for word in ("missing keys", "unexpected key", "size mismatch"))
    assert converted(runner.model) == 2 and metrics
    (ema,) = (hook for hook in runner.hooks if isinstance(hook, EMAHook))
    evaluated = ema.ema_model.module.state_dict()
    assert evaluated.keys() == runner.model.state_dict().keys() == theirs["state_dict"].keys()
    for name, value in evaluated.items():  # a checkpoint's state_dict is the average
        assert torch.equal(value, theirs["state_dict"][name]), name
