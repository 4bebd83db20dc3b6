"""The small FMA2D on CIFAR-10, trained for 20 epochs instead of 4: the weights that ship with the package."""

_base_ = "fma2d-nano_b64-3k_cifar10.py"

iterations = 16000
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=False, begin=0, end=500),
    dict(type="CosineAnnealingLR", eta_min=1e-6, by_epoch=False, begin=500, end=iterations),
]
train_cfg = dict(max_iters=iterations, val_interval=2000)
