"""SegFormer-B5 (arXiv 2105.15203) under the recipe of the FMA2D configs, which is its own.

It starts from the weights that mmsegmentation publishes, as no ImageNet config here trains this backbone.
"""

_base_ = [
    "../_base_/models/ade20k_segformer.py",
    "../_base_/datasets/ade20k_bs2_512.py",
    "../_base_/schedules/ade20k_160k_adamw.py",
    "../_base_/mmseg_runtime.py",
]

model = dict(
    backbone=dict(
        type="MixVisionTransformer",
        in_channels=3,
        embed_dims=64,
        num_stages=4,
        num_layers=[3, 6, 40, 3],
        num_heads=[1, 2, 5, 8],
        patch_sizes=[7, 3, 3, 3],
        sr_ratios=[8, 4, 2, 1],
        out_indices=(0, 1, 2, 3),
        mlp_ratio=4,
        qkv_bias=True,
        drop_path_rate=0.1,
        init_cfg=dict(
            type="Pretrained",
            checkpoint="https://mmassets.onedl.ai/mmsegmentation/v0.5/pretrain/segformer/mit_b5_20220624-658746d9.pth",
        ),
    ),
    decode_head=dict(in_channels=[64, 128, 320, 512]),
)
