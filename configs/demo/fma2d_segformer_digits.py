"""A small FMA2D with SegFormer's head learns to segment scenes of real handwritten digits on the CPU, in minutes.

The scenes have 96x96 pixels, so that the first stage attends over 24x24 tokens. With cells of 3x3 that makes two far
levels in the first stage, one in the second, and full attention in the third. The goal is an mIoU of 60 % over the
background and the ten digits; "background" everywhere has one of about 8 %.
"""

default_scope = "mmseg"
custom_imports = dict(imports=["fma_mm"], allow_failed_imports=False)

# model
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(type="SegDataPreProcessor", mean=[70.0] * 3, std=[54.0] * 3, size=(96, 96), seg_pad_val=255),
    backbone=dict(
        type="FMA2D",
        arch=dict(embed_dims=32, depths=(1, 2, 2), num_heads=(1, 2, 4)),
        img_size=96,
        patch_sizes=(7, 3, 3),
        strides=(4, 2, 2),
        cell_sizes=3,
        drop_path_rate=0.0,
        out_indices=(0, 1, 2),
    ),
    decode_head=dict(
        type="SegformerHead",
        in_channels=[32, 64, 128],
        in_index=[0, 1, 2],
        channels=64,
        num_classes=11,
        dropout_ratio=0.0,
        norm_cfg=dict(type="BN"),
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss"),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)

# data
# Digits have no mirror images, and no scene is seen twice: small rotations are all the augmentation there is.
train_pipeline = [
    dict(type="RandomRotate", prob=0.5, degree=10, pad_val=45, seg_pad_val=0),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),  # for inference; the data set has its scenes in memory and leaves this step out
    dict(type="PackSegInputs"),
]
# Scenes are composed in less time than worker processes need to hand them over.
loader = dict(num_workers=0, persistent_workers=False, pin_memory=False)
train_dataloader = dict(
    batch_size=8,
    dataset=dict(type="DigitScenes", split="train", num_scenes=10000, pipeline=train_pipeline),
    sampler=dict(type="InfiniteSampler", shuffle=True),
    **loader,
)
val_dataloader = dict(
    batch_size=16,
    dataset=dict(type="DigitScenes", split="val", num_scenes=200, pipeline=test_pipeline, test_mode=True),
    sampler=dict(type="DefaultSampler", shuffle=False),
    **loader,
)
test_dataloader = val_dataloader
val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
test_evaluator = val_evaluator

# schedule
iters = 1200
optim_wrapper = dict(
    optimizer=dict(type="Adam", lr=1e-3),
    paramwise_cfg=dict(custom_keys=dict(decode_head=dict(lr_mult=10.0))),  # as for SegFormer
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.05, by_epoch=False, end=100),
    dict(type="CosineAnnealingLR", eta_min=1e-5, by_epoch=False, begin=100, end=iters),
]
train_cfg = dict(type="IterBasedTrainLoop", max_iters=iters, val_interval=600)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

# runtime
# mmseg's own visualization hook is left out: it reads images from files, and the scenes are in none.
default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=600, max_keep_ckpts=1),
    sampler_seed=dict(type="DistSamplerSeedHook"),
)
custom_hooks = [
    dict(type="CPUThreadsHook", num_threads=1),
    dict(type="RunSummaryHook", num_images=8, metric="mIoU"),
]
env_cfg = dict(cudnn_benchmark=False, mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0))
log_processor = dict(by_epoch=False)
visualizer = dict(type="SegLocalVisualizer", vis_backends=[dict(type="LocalVisBackend")])
randomness = dict(seed=0)
work_dir = "./work_dirs/fma2d_segformer_digits"
load_from = None
resume = False
