"""FMA2D-L with SegFormer's head on ADE20K in crops of 640x640, from weights of ImageNet-22K.

Run ../imagenet/fma2d-large_8xb128_in22k.py first, or name another checkpoint with
``--cfg-options model.backbone.init_cfg.checkpoint=PATH``.
"""

_base_ = [
    "../_base_/models/ade20k_segformer.py",
    "../_base_/datasets/ade20k_bs2_640.py",
    "../_base_/schedules/ade20k_160k_adamw.py",
    "../_base_/mmseg_runtime.py",
]

model = dict(
    data_preprocessor=dict(size=(640, 640)),
    backbone=dict(
        type="FMA2D",
        arch="large",
        img_size=640,  # levels that 224x224 does not have start as copies of its last one
        drop_path_rate=0.3,
        out_indices=(0, 1, 2, 3),
        init_cfg=dict(
            type="Pretrained", checkpoint="work_dirs/fma2d-large_8xb128_in22k/epoch_90.pth", prefix="backbone."
        ),
    ),
    decode_head=dict(in_channels=[192, 384, 768, 1536]),
)
