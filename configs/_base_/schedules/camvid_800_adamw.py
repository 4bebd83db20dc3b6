"""A short schedule for CamVid from random weights, which a CPU core takes a model of 30 M parameters through: 800
iterations."""

_base_ = "../mmseg_runtime.py"

iterations = 800
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=6e-4, betas=(0.9, 0.999), weight_decay=0.01),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        custom_keys={"_basis": dict(decay_mult=0.0), "relative_position_bias_table": dict(decay_mult=0.0)},
    ),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=False, begin=0, end=100),
    dict(type="PolyLR", eta_min=0.0, power=1.0, by_epoch=False, begin=100, end=iterations),
]

train_cfg = dict(type="IterBasedTrainLoop", max_iters=iterations, val_interval=400)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
auto_scale_lr = dict(base_batch_size=4)

default_hooks = dict(
    logger=dict(type="LoggerHook", interval=20), checkpoint=dict(interval=400, max_keep_ckpts=1, save_best=None)
)
randomness = dict(seed=0)
