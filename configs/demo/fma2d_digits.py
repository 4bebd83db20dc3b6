"""A small FMA2D learns scikit-learn's handwritten digits on the CPU, in about two minutes.

The 8x8 pictures are enlarged to 48x48, so that the first stage attends over 12x12 tokens. With cells of 2x2 that makes
two far levels in the first stage, one in the second, and full attention in the third.
"""

default_scope = "mmpretrain"
custom_imports = dict(imports=["fma_mm"], allow_failed_imports=False)

# model
model = dict(
    type="ImageClassifier",
    backbone=dict(
        type="FMA2D",
        arch=dict(embed_dims=32, depths=(1, 2, 1), num_heads=(1, 2, 4)),
        img_size=48,
        patch_sizes=(7, 3, 3),
        strides=(4, 2, 2),
        cell_sizes=2,
        drop_path_rate=0.1,
    ),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(
        type="LinearClsHead",
        num_classes=10,
        in_channels=128,
        loss=dict(type="LabelSmoothLoss", label_smooth_val=0.1, mode="original"),
    ),
)
data_preprocessor = dict(num_classes=10, mean=[78.0] * 3, std=[96.0] * 3)

# data
train_pipeline = [
    dict(type="Resize", scale=(48, 48), interpolation="bicubic"),
    dict(type="Rotate", magnitude_range=(0, 15), magnitude_std="inf", pad_val=0, prob=0.5, interpolation="bilinear"),
    dict(type="RandomCrop", crop_size=48, padding=5),
    dict(type="PackInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),  # for inference; the data set has its images in memory and leaves this step out
    dict(type="Resize", scale=(48, 48), interpolation="bicubic"),
    dict(type="PackInputs"),
]
# For tools/test.py --tta. Digits have no mirror images: small rotations take the place of mmpretrain's flips.
tta_model = dict(type="AverageClsScoreTTA")
tta_pipeline = [
    *test_pipeline[:-1],
    dict(
        type="TestTimeAug",
        transforms=[
            [
                dict(type="Rotate", angle=a, pad_val=0, prob=1.0, random_negative_prob=0.0, interpolation="bilinear")
                for a in (-8.0, 0.0, 8.0)
            ],
            [dict(type="PackInputs")],
        ],
    ),
]
# The images are in memory and small: worker processes would cost more than they bring.
loader = dict(num_workers=0, persistent_workers=False, pin_memory=False, collate_fn=dict(type="default_collate"))
train_dataloader = dict(
    batch_size=64,
    dataset=dict(type="HandwrittenDigits", split="train", pipeline=train_pipeline),
    sampler=dict(type="DefaultSampler", shuffle=True),
    **loader,
)
val_dataloader = dict(
    batch_size=128,
    dataset=dict(type="HandwrittenDigits", split="val", pipeline=test_pipeline, test_mode=True),
    sampler=dict(type="DefaultSampler", shuffle=False),
    **loader,
)
test_dataloader = val_dataloader
val_evaluator = [dict(type="Accuracy", topk=(1,)), dict(type="ClassificationReport")]
test_evaluator = val_evaluator

# schedule
epochs = 25
optim_wrapper = dict(optimizer=dict(type="Adam", lr=2e-3), clip_grad=dict(max_norm=5.0))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.05, by_epoch=True, end=3, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=1e-5, by_epoch=True, begin=3, end=epochs, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=epochs, val_interval=5)
val_cfg = dict()
test_cfg = dict()

# runtime
default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=10),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(type="CheckpointHook", interval=5, max_keep_ckpts=1),
    sampler_seed=dict(type="DistSamplerSeedHook"),
    visualization=dict(type="VisualizationHook", enable=False),
)
custom_hooks = [dict(type="CPUThreadsHook", num_threads=1), dict(type="RunSummaryHook", num_images=40)]
env_cfg = dict(cudnn_benchmark=False, mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0))
visualizer = dict(type="UniversalVisualizer", vis_backends=[dict(type="LocalVisBackend")])
randomness = dict(seed=0)
work_dir = "./work_dirs/fma2d_digits"
load_from = None
resume = False
