"""A small FMA2D with SegFormer's head on CamVid, to compare attentions: 40x40 tokens at first, cells of 4x4.

The attention is chosen by ``--cfg-options model.backbone.attention=near`` (full, near, fma, fma_linear, none).
"""

_base_ = [
    "../_base_/models/camvid_segformer.py",
    "../_base_/datasets/camvid_bs4_160.py",
    "../_base_/schedules/camvid_800_adamw.py",
]

model = dict(
    backbone=dict(
        type="FMA2D",
        arch=dict(embed_dims=36, depths=(2, 4, 1), num_heads=(2, 4, 8)),
        img_size=160,
        patch_sizes=(7, 3, 3),
        strides=(4, 2, 2),
        cell_sizes=4,
        out_indices=(0, 1, 2),
    ),
    decode_head=dict(in_channels=[36, 72, 144], in_index=[0, 1, 2], channels=64),
)
