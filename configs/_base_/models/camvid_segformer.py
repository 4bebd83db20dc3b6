"""A segmentor of CamVid, but for its backbone: the all-MLP head of SegFormer (arXiv 2105.15203) on four scales.

A config adds ``backbone`` and the ``in_channels`` of the head.
"""

_base_ = "./ade20k_segformer.py"

model = dict(
    data_preprocessor=dict(size=(160, 160), seg_pad_val=11),
    decode_head=dict(num_classes=11, ignore_index=11, norm_cfg=dict(type="BN")),
)
