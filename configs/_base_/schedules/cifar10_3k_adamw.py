"""A short schedule for CIFAR-10, of which a CPU core takes a small model through in half an hour: 3,000 iterations."""

_base_ = "../mmpretrain_runtime.py"

iterations = 3000
optim_wrapper = dict(
    optimizer=dict(type="AdamW", lr=2e-3, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        flat_decay_mult=0.0,
        custom_keys={
            "_basis": dict(decay_mult=0.0),
            "relative_position_bias_table": dict(decay_mult=0.0),
            ".pos_embed": dict(decay_mult=0.0),
        },
    ),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=False, begin=0, end=150),
    dict(type="CosineAnnealingLR", eta_min=1e-5, by_epoch=False, begin=150, end=iterations),
]

train_cfg = dict(by_epoch=False, max_iters=iterations, val_interval=1000)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=64)

default_hooks = dict(
    logger=dict(type="LoggerHook", interval=50),
    checkpoint=dict(type="CheckpointHook", interval=1000, by_epoch=False, max_keep_ckpts=1, save_best=None),
)
log_processor = dict(by_epoch=False)
randomness = dict(seed=0)
