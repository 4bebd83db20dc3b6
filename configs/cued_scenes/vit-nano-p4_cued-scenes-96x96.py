"""A plain ViT segments the digits in the colour of the one in the corner: no convolutions, no class token.

24x24 tokens in three layers; cells of 2x2. With the near field alone, a token sees at most nine tokens far through all
layers, so most digits do not see the corner. The attention is chosen by
``--cfg-options custom_hooks.0.attention=near`` (full, near, fma, fma_linear, none).
"""

_base_ = "../demo/fma2d_segformer_digits.py"

model = dict(
    backbone=dict(
        _delete_=True,
        type="VisionTransformer",
        img_size=96,
        patch_size=4,
        embed_dims=64,
        num_layers=3,
        num_heads=4,
        mlp_ratio=2,
        out_indices=-1,
        with_cls_token=False,
        final_norm=True,
        interpolate_mode="bicubic",
    ),
    decode_head=dict(
        _delete_=True,
        type="FCNHead",
        in_channels=64,
        in_index=0,
        channels=64,
        num_convs=0,
        concat_input=False,
        num_classes=2,
        dropout_ratio=0.0,
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss"),
    ),
)
train_dataloader = dict(dataset=dict(type="CuedScenes", pipeline=[dict(type="PackSegInputs")]))
val_dataloader = dict(dataset=dict(type="CuedScenes"))
test_dataloader = val_dataloader

iters = 600
optim_wrapper = dict(paramwise_cfg=None)  # that of the demo is for SegFormer's head
param_scheduler = [
    dict(type="LinearLR", start_factor=0.05, by_epoch=False, end=100),
    dict(type="CosineAnnealingLR", eta_min=1e-5, by_epoch=False, begin=100, end=iters),
]
train_cfg = dict(max_iters=iters, val_interval=300)
default_hooks = dict(checkpoint=dict(interval=300))
custom_hooks = [
    dict(type="ConvertAttentionHook", cell_size=2, rank=1, attention="fma", value_gain=0),
    dict(type="CPUThreadsHook", num_threads=1),
    dict(type="RunSummaryHook", num_images=8, metric="mIoU"),
]
work_dir = None
