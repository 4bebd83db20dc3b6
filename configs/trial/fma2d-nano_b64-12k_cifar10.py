"""FMA2D-nano on CIFAR-10, to compare attentions beside convolutions and downsampling.

It sees the images 15 times, as the plain ViT beside it does. The attention is chosen by
``--cfg-options model.backbone.attention=near`` (full, near, fma, fma_linear, none).
"""

_base_ = "../cifar10/fma2d-nano_b64-3k_cifar10.py"

iterations = 12000
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=False, begin=0, end=500),
    dict(type="CosineAnnealingLR", eta_min=1e-5, by_epoch=False, begin=500, end=iterations),
]
train_cfg = dict(max_iters=iterations, val_interval=4000)
