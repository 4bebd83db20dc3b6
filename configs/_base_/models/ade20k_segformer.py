"""A segmentor of ADE20K, but for its backbone: the all-MLP head of SegFormer (arXiv 2105.15203) on four scales.

A config adds ``backbone`` and the ``in_channels`` of the head. ``size`` is that of the training crops.
"""

model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        size=(512, 512),
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,  # images are loaded as BGR; mean and std are those of RGB
        pad_val=0,
        seg_pad_val=255,
    ),
    decode_head=dict(
        type="SegformerHead",
        in_index=[0, 1, 2, 3],
        channels=256,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=dict(type="SyncBN", requires_grad=True),  # plain batch normalisation without several GPUs
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)
