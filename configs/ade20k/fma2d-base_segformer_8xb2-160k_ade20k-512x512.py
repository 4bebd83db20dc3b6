"""FMA2D-B with SegFormer's head on ADE20K, from the weights of ../imagenet/fma2d-base_8xb128_in1k.py."""

_base_ = [
    "../_base_/models/ade20k_segformer.py",
    "../_base_/datasets/ade20k_bs2_512.py",
    "../_base_/schedules/ade20k_160k_adamw.py",
    "../_base_/mmseg_runtime.py",
]

model = dict(
    backbone=dict(
        type="FMA2D",
        arch="base",
        img_size=512,  # levels that 224x224 does not have start as copies of its last one
        drop_path_rate=0.3,
        out_indices=(0, 1, 2, 3),
        init_cfg=dict(
            type="Pretrained", checkpoint="work_dirs/fma2d-base_8xb128_in1k/epoch_300.pth", prefix="backbone."
        ),
    ),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
)
