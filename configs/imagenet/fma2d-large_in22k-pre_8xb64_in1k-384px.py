"""Fine-tuning of FMA2D-L on ImageNet-1K at 384x384, after pre-training on ImageNet-22K; the recipe of Swin-L.

Run fma2d-large_8xb128_in22k.py first, or name another checkpoint with
``--cfg-options model.backbone.init_cfg.checkpoint=PATH``.
"""

_base_ = [
    "../_base_/models/imagenet_classifier.py",
    "../_base_/datasets/imagenet_bs64_384.py",
    "../_base_/schedules/imagenet_bs1024_adamw.py",
    "../_base_/mmpretrain_runtime.py",
]

model = dict(
    backbone=dict(
        type="FMA2D",
        arch="large",  # with the summary levels of 224x224, which serve the larger images as well
        drop_path_rate=0.2,
        out_indices=(3,),
        init_cfg=dict(
            type="Pretrained", checkpoint="work_dirs/fma2d-large_8xb128_in22k/epoch_90.pth", prefix="backbone."
        ),
    ),
    head=dict(in_channels=1536),
)

optim_wrapper = dict(optimizer=dict(lr=2e-5, weight_decay=1e-8))
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=2e-7, by_epoch=True, begin=5, end=30, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=30)
auto_scale_lr = dict(base_batch_size=512)
