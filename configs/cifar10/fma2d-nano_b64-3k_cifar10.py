"""A small FMA2D on CIFAR-10, of the size of the Swin and the ViT beside it: 16x16 tokens at first, cells of 4x4."""

_base_ = [
    "../_base_/models/cifar10_classifier.py",
    "../_base_/datasets/cifar10_bs64_32.py",
    "../_base_/schedules/cifar10_3k_adamw.py",
]

model = dict(
    backbone=dict(
        type="FMA2D",
        arch=dict(embed_dims=36, depths=(2, 4, 1), num_heads=(2, 4, 8)),
        img_size=32,
        patch_sizes=3,
        strides=2,
        cell_sizes=4,
    ),
    head=dict(in_channels=144),
)
