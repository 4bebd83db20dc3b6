"""Swin-B under the recipe of the FMA2D configs, from the weights of ../imagenet/swin-base_8xb128_in1k.py."""

_base_ = [
    "../_base_/models/ade20k_segformer.py",
    "../_base_/datasets/ade20k_bs2_512.py",
    "../_base_/schedules/ade20k_160k_adamw.py",
    "../_base_/mmseg_runtime.py",
]

model = dict(
    backbone=dict(
        type="mmpretrain.SwinTransformer",
        arch="base",
        drop_path_rate=0.3,
        out_indices=(0, 1, 2, 3),
        pad_small_map=True,  # keeps the windows of 7x7 and their shifts on maps of any size
        init_cfg=dict(
            type="Pretrained", checkpoint="work_dirs/swin-base_8xb128_in1k/epoch_300.pth", prefix="backbone."
        ),
    ),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
)
