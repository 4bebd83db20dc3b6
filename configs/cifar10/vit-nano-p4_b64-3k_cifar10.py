"""A small ViT on CIFAR-10, of the size of the FMA2D beside it: 8x8 tokens throughout."""

_base_ = [
    "../_base_/models/cifar10_classifier.py",
    "../_base_/datasets/cifar10_bs64_32.py",
    "../_base_/schedules/cifar10_3k_adamw.py",
]

model = dict(
    backbone=dict(
        type="VisionTransformer",
        arch=dict(embed_dims=100, num_layers=5, num_heads=5, feedforward_channels=400),
        img_size=32,
        patch_size=4,
        out_type="featmap",
        with_cls_token=False,
    ),
    head=dict(in_channels=100),
)
