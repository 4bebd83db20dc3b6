"""Swin-B under the recipe of the FMA2D configs: only the backbone differs."""

_base_ = [
    "../_base_/models/imagenet_classifier.py",
    "../_base_/datasets/imagenet_bs128_224.py",
    "../_base_/schedules/imagenet_bs1024_adamw.py",
    "../_base_/mmpretrain_runtime.py",
]

model = dict(
    backbone=dict(type="SwinTransformer", arch="base", img_size=224, drop_path_rate=0.5),
    head=dict(in_channels=1024),
)
