"""The small FMA2D on CIFAR-10, trained on from the weights of the schedule of 16,000 iterations."""

_base_ = "fma2d-nano_b64-16k_cifar10.py"

load_from = "work_dirs/fma2d-nano_b64-16k_cifar10/iter_16000.pth"

iterations = 5000
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-2, by_epoch=False, begin=0, end=200),
    dict(type="CosineAnnealingLR", eta_min=1e-6, by_epoch=False, begin=200, end=iterations),
]
train_cfg = dict(max_iters=iterations, val_interval=2500)
randomness = dict(seed=1)  # not the order of images of the first schedule
