_base_ = [
    "../_base_/models/imagenet_classifier.py",
    "../_base_/datasets/imagenet_bs128_224.py",
    "../_base_/schedules/imagenet_bs1024_adamw.py",
    "../_base_/mmpretrain_runtime.py",
]

model = dict(
    backbone=dict(type="FMA2D", arch="large", drop_path_rate=0.5, out_indices=(3,)),
    head=dict(in_channels=1536),
)
