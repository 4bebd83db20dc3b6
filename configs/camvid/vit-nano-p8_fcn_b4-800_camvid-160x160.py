"""A plain ViT on CamVid, to compare attentions: no convolutions, no class token, 20x20 tokens, cells of 2x2.

The attention is chosen by ``--cfg-options custom_hooks.0.attention=near`` (full, near, fma, fma_linear, none).
"""

_base_ = [
    "../_base_/models/camvid_segformer.py",
    "../_base_/datasets/camvid_bs4_160.py",
    "../_base_/schedules/camvid_800_adamw.py",
]

model = dict(
    backbone=dict(
        type="VisionTransformer",
        img_size=160,
        patch_size=8,
        embed_dims=96,
        num_layers=4,
        num_heads=4,
        mlp_ratio=4,
        out_indices=-1,
        with_cls_token=False,
        final_norm=True,
        interpolate_mode="bicubic",
    ),
    decode_head=dict(
        _delete_=True,
        type="FCNHead",
        in_channels=96,
        in_index=0,
        channels=96,
        num_convs=0,
        concat_input=False,
        num_classes=11,
        ignore_index=11,
        dropout_ratio=0.0,
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False),
    ),
)

custom_hooks = [dict(type="ConvertAttentionHook", cell_size=2, rank=1, attention="fma")]
