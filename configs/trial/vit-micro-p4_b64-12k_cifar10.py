"""A plain ViT on CIFAR-10, to compare attentions: no convolutions, 8x8 tokens throughout, cells of one token.

It sees the images 15 times. The attention is chosen by
``--cfg-options custom_hooks.0.attention=near`` (full, near, fma, fma_linear, none).
"""

_base_ = "../cifar10/vit-nano-p4_b64-3k_cifar10.py"

model = dict(
    backbone=dict(arch=dict(embed_dims=64, num_layers=2, num_heads=4, feedforward_channels=256)),
    head=dict(in_channels=64),
)

custom_hooks = [dict(type="ConvertAttentionHook", cell_size=1, rank=1, attention="fma")]

iterations = 12000
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=False, begin=0, end=500),
    dict(type="CosineAnnealingLR", eta_min=1e-5, by_epoch=False, begin=500, end=iterations),
]
train_cfg = dict(max_iters=iterations, val_interval=2000)
