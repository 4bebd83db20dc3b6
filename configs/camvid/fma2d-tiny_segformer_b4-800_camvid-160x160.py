"""FMA2D-T with SegFormer's head on CamVid, from random weights."""

_base_ = [
    "../_base_/models/camvid_segformer.py",
    "../_base_/datasets/camvid_bs4_160.py",
    "../_base_/schedules/camvid_800_adamw.py",
]

model = dict(
    backbone=dict(type="FMA2D", arch="tiny", img_size=160, out_indices=(0, 1, 2, 3)),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
)
