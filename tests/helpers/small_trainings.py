"""Small trainings of mmpretrain and mmseg as texts of configs, and runs of them that stop before their end."""

from pathlib import Path

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

CLASSIFIER = """
default_scope = "mmpretrain"
custom_imports = dict(imports=["fma_mm"], allow_failed_imports=False)
data_preprocessor = dict(num_classes=1000, mean=[120.0] * 3, std=[60.0] * 3)
model = dict(
    type="ImageClassifier",
    backbone=dict(
        type="FMA2D",
        arch=dict(embed_dims=8, depths=(1, 1), num_heads=(1, 2)),
        patch_sizes=(7, 3),
        strides=(4, 2),
        cell_sizes=2,
        img_size=32,
        drop_path_rate=0.3,
        drop_rate=0.1,
    ),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(type="LinearClsHead", num_classes=1000, in_channels=16),
    train_cfg=dict(augments=[dict(type="Mixup", alpha=0.8), dict(type="CutMix", alpha=1.0)]),
)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="RandomResizedCrop", scale=32),
    dict(type="RandomFlip", prob=0.5),
    dict(type="RandAugment", policies="timm_increasing", num_policies=2, total_level=10, magnitude_level=9,
         magnitude_std=0.5),
    dict(type="RandomErasing", erase_prob=0.5, mode="rand"),
    dict(type="PackInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(32, 32)),
    dict(type="PackInputs"),
]
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    dataset=dict(type="ImageNet", data_root="{data}", split="train", pipeline=train_pipeline),
    sampler=dict(type="DefaultSampler", shuffle=True),
)
val_dataloader = dict(
    batch_size=4,
    num_workers=0,
    dataset=dict(type="ImageNet", data_root="{data}", split="val", pipeline=test_pipeline),
    sampler=dict(type="DefaultSampler", shuffle=False),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="Accuracy", topk=(1,))
test_evaluator = val_evaluator
optim_wrapper = dict(optimizer=dict(type="AdamW", lr=1e-2), clip_grad=dict(max_norm=5.0))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, end=1, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=1, end=4, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=4, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=8)
default_hooks = dict(
    checkpoint=dict(type="CheckpointHook", interval=1, max_keep_ckpts=1, save_best="auto"),
    visualization=dict(type="VisualizationHook", enable=False),
)
visualizer = dict(type="UniversalVisualizer", vis_backends=[dict(type="LocalVisBackend")])
"""

SEGMENTOR = """
default_scope = "mmseg"
custom_imports = dict(imports=["fma_mm"], allow_failed_imports=False)
data_preprocessor = dict(type="SegDataPreProcessor", mean=[120.0] * 3, std=[60.0] * 3, size=(32, 32), pad_val=0,
                         seg_pad_val=255)
model = dict(
    type="EncoderDecoder",
    data_preprocessor=data_preprocessor,
    backbone=dict(
        type="FMA2D",
        arch=dict(embed_dims=8, depths=(1, 1), num_heads=(1, 2)),
        patch_sizes=(7, 3),
        strides=(4, 2),
        cell_sizes=2,
        img_size=32,
        drop_path_rate=0.3,
        out_indices=(0, 1),
    ),
    decode_head=dict(type="FCNHead", in_channels=16, in_index=1, channels=8, num_convs=1, num_classes=150,
                     norm_cfg=dict(type="BN"), loss_decode=dict(type="CrossEntropyLoss")),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", reduce_zero_label=True),
    dict(type="RandomResize", scale=(70, 50), ratio_range=(0.7, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(32, 32), cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(70, 50), keep_ratio=True),
    dict(type="LoadAnnotations", reduce_zero_label=True),
    dict(type="PackSegInputs"),
]
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    persistent_workers=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(type="ADE20KDataset", data_root="{data}", pipeline=train_pipeline,
                 data_prefix=dict(img_path="images/training", seg_map_path="annotations/training")),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="ADE20KDataset", data_root="{data}", pipeline=test_pipeline,
                 data_prefix=dict(img_path="images/validation", seg_map_path="annotations/validation")),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
test_evaluator = val_evaluator
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-3))
param_scheduler = [dict(type="PolyLR", eta_min=0, power=1.0, begin=0, end=16, by_epoch=False)]
train_cfg = dict(type="IterBasedTrainLoop", max_iters=16, val_interval=8)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
default_hooks = dict(
    checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=4),
    visualization=dict(type="SegVisualizationHook"),
)
visualizer = dict(type="SegLocalVisualizer", vis_backends=[dict(type="LocalVisBackend")])
"""

VIT = """
_base_ = ["classifier.py"]
model = dict(
    backbone=dict(_delete_=True, type="VisionTransformer", img_size=32, patch_size=4,
                  arch=dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32)),
    neck=None,
    head=dict(_delete_=True, type="VisionTransformerClsHead", num_classes=1000, in_channels=16),
)
"""


class Stop(Exception):
    """Stands for a kill in tests that stay in one process."""


@HOOKS.register_module()
class StopHook(Hook):
    """Ends a training after a number of iterations."""

    priority = "LOWEST"

    def __init__(self, after: int):
        self.after = after

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.after:
            raise Stop


def state(work_dir: Path) -> dict:
    """Content of the last checkpoint: weights, averaged weights, optimizer."""
    checkpoint = torch.load((work_dir / "last_checkpoint").read_text(), weights_only=False)
    return {key: checkpoint[key] for key in ("state_dict", "ema_state_dict", "optimizer") if key in checkpoint}


def assert_same(left, right) -> None:
    """Two such contents are equal, bit by bit."""
    assert type(left) is type(right)
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, list):
        assert len(left) == len(right)
        for a, b in zip(left, right, strict=True):
            assert_same(a, b)
    else:
        assert torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right
