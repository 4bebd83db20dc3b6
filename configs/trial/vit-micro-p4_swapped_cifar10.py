"""The ViT of 15 epochs beside it with FMA in place of its attention, fine-tuned for 300 iterations: docs/trial.md.

``--cfg-options custom_hooks.0.layers="[1]"`` swaps one block alone, ``load_from=PATH`` names the weights.
"""

_base_ = "vit-micro-p4_b64-12k_cifar10.py"

iterations = 300
optim_wrapper = dict(optimizer=dict(lr=5e-4))
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=False, begin=0, end=30),
    dict(type="CosineAnnealingLR", eta_min=1e-6, by_epoch=False, begin=30, end=iterations),
]
train_cfg = dict(max_iters=iterations, val_interval=iterations)
