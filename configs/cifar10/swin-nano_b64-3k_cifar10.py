"""A small Swin on CIFAR-10, of the size of the FMA2D beside it: 16x16 tokens at first, windows of 4x4."""

_base_ = [
    "../_base_/models/cifar10_classifier.py",
    "../_base_/datasets/cifar10_bs64_32.py",
    "../_base_/schedules/cifar10_3k_adamw.py",
]

model = dict(
    backbone=dict(
        type="SwinTransformer",
        arch=dict(embed_dims=40, depths=[2, 4, 1], num_heads=[2, 4, 8]),
        img_size=32,
        patch_size=2,
        window_size=4,
        out_indices=(2,),
        drop_path_rate=0.0,
    ),
    head=dict(in_channels=160),
)
