"""ViT-B/16 under the recipe of the FMA2D configs.

As in DeiT (arXiv 2012.12877), the classifier reads the class token, and the stochastic depth rate is 0.1.
"""

_base_ = [
    "../_base_/models/imagenet_classifier.py",
    "../_base_/datasets/imagenet_bs128_224.py",
    "../_base_/schedules/imagenet_bs1024_adamw.py",
    "../_base_/mmpretrain_runtime.py",
]

model = dict(
    backbone=dict(type="VisionTransformer", arch="deit-base", img_size=224, patch_size=16, drop_path_rate=0.1),
    neck=None,
    head=dict(type="VisionTransformerClsHead", in_channels=768),
)
