"""ViT-B/16 under the recipe of the FMA2D configs, from the weights of ../imagenet/vit-base-p16_8xb128_in1k.py.

A ViT has a single scale, and SegFormer's head reads four: the neck that mmsegmentation gives to BEiT and MAE makes
strides 4, 8, 16 and 32 of the maps after layers 3, 6, 9 and 12. The position embedding is resized to 512x512 when the
weights are loaded. All layers learn at the same rate, as in the other configs;
``optim_wrapper.constructor="LayerDecayOptimWrapperConstructor"`` with
``optim_wrapper.paramwise_cfg.layer_decay_rate=0.75`` is what many recipes for a ViT do.
"""

_base_ = [
    "../_base_/models/ade20k_segformer.py",
    "../_base_/datasets/ade20k_bs2_512.py",
    "../_base_/schedules/ade20k_160k_adamw.py",
    "../_base_/mmseg_runtime.py",
]

model = dict(
    backbone=dict(
        type="mmpretrain.VisionTransformer",
        arch="deit-base",
        img_size=512,
        patch_size=16,
        drop_path_rate=0.1,
        out_type="featmap",
        out_indices=(2, 5, 8, 11),
        init_cfg=dict(
            type="Pretrained", checkpoint="work_dirs/vit-base-p16_8xb128_in1k/epoch_300.pth", prefix="backbone."
        ),
    ),
    neck=dict(type="Feature2Pyramid", embed_dim=768, rescales=[4, 2, 1, 0.5]),
    decode_head=dict(in_channels=[768, 768, 768, 768]),
)
