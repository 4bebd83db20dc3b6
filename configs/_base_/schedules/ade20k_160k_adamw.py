"""The recipe of SegFormer (arXiv 2105.15203) on ADE20K: 160,000 iterations of AdamW at batches of 16."""

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        # A key that occurs in a parameter's name decides alone: as in SegFormer, weight decay spares the norms of the
        # backbone and not those of the head.
        custom_keys={
            # What starts from random weights learns faster than what was pre-trained.
            "head": dict(lr_mult=10.0),
            "neck": dict(lr_mult=10.0),
            # Summaries start as means; decay would pull them, and learned positions, to zero.
            "_basis": dict(decay_mult=0.0),
            "relative_position_bias_table": dict(decay_mult=0.0),
            "cls_token": dict(decay_mult=0.0),
            "pos_embed": dict(decay_mult=0.0),
        },
    ),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type="PolyLR", eta_min=0.0, power=1.0, by_epoch=False, begin=1500, end=160000),
]

train_cfg = dict(type="IterBasedTrainLoop", max_iters=160000, val_interval=16000)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

# The batch size that lr is meant for: 8 GPUs with 2 images each. --auto-scale-lr adapts it to another one.
auto_scale_lr = dict(base_batch_size=16)
