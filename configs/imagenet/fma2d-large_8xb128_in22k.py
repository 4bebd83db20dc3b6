"""Pre-training of FMA2D-L on ImageNet-22K with the recipe of Swin-L: 90 epochs, lr 1e-3 at batches of 4096."""

_base_ = [
    "../_base_/models/imagenet_classifier.py",
    "../_base_/datasets/imagenet22k_bs128_224.py",
    "../_base_/schedules/imagenet_bs1024_adamw.py",
    "../_base_/mmpretrain_runtime.py",
]

model = dict(
    backbone=dict(type="FMA2D", arch="large", drop_path_rate=0.2, out_indices=(3,)),
    head=dict(num_classes=21841, in_channels=1536),
)

optim_wrapper = dict(optimizer=dict(lr=2.5e-4))  # 1e-3 * 1024 / 4096
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=2.5e-6, by_epoch=True, begin=5, end=90, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=90)
val_cfg = None
test_cfg = None
