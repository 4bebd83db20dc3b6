"""SegFormer-B1 (arXiv 2105.15203) on CamVid, from random weights; under the recipe of the FMA2D config."""

_base_ = [
    "../_base_/models/camvid_segformer.py",
    "../_base_/datasets/camvid_bs4_160.py",
    "../_base_/schedules/camvid_800_adamw.py",
]

model = dict(
    backbone=dict(
        type="MixVisionTransformer",
        embed_dims=64,
        num_stages=4,
        num_layers=[2, 2, 2, 2],
        num_heads=[1, 2, 5, 8],
        patch_sizes=[7, 3, 3, 3],
        sr_ratios=[8, 4, 2, 1],
        out_indices=(0, 1, 2, 3),
        mlp_ratio=4,
        qkv_bias=True,
        drop_path_rate=0.0,
    ),
    decode_head=dict(in_channels=[64, 128, 320, 512]),
)
