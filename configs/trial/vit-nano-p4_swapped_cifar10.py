"""The ViT of configs/cifar10 with FMA in place of its attention, fine-tuned for 300 iterations: docs/trial.md.

``--cfg-options custom_hooks.0.layers="[2]"`` swaps one block alone, ``load_from=PATH`` names the weights.
"""

_base_ = "../cifar10/vit-nano-p4_b64-3k_cifar10.py"

custom_hooks = [dict(type="ConvertAttentionHook", cell_size=2, rank=1, attention="fma", layers=None)]

iterations = 300
optim_wrapper = dict(optimizer=dict(lr=5e-4))
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=False, begin=0, end=30),
    dict(type="CosineAnnealingLR", eta_min=1e-6, by_epoch=False, begin=30, end=iterations),
]
train_cfg = dict(max_iters=iterations, val_interval=iterations)
