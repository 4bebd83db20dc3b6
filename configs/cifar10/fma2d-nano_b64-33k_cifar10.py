"""The small FMA2D on CIFAR-10, trained on from the weights of the third schedule: the weights that ship."""

_base_ = "fma2d-nano_b64-27k_cifar10.py"

load_from = "work_dirs/fma2d-nano_b64-27k_cifar10/iter_8000.pth"

iterations = 6000
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-2, by_epoch=False, begin=0, end=200),
    dict(type="CosineAnnealingLR", eta_min=1e-6, by_epoch=False, begin=200, end=iterations),
]
train_cfg = dict(max_iters=iterations, val_interval=2000)
randomness = dict(seed=3)  # not the order of images of the other three
