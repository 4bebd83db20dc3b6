"""The small FMA2D on CIFAR-10, trained on once more from the weights of the second schedule."""

_base_ = "fma2d-nano_b64-16k-5k_cifar10.py"

load_from = "work_dirs/fma2d-nano_b64-16k-5k_cifar10/iter_5000.pth"

iterations = 8000
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-2, by_epoch=False, begin=0, end=200),
    dict(type="CosineAnnealingLR", eta_min=1e-6, by_epoch=False, begin=200, end=iterations),
]
train_cfg = dict(max_iters=iterations, val_interval=2000)
randomness = dict(seed=2)  # not the order of images of the other two
