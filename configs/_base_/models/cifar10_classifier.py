"""A classifier of CIFAR-10, but for its backbone: mean features and a linear layer.

A config adds ``backbone`` and the ``in_channels`` of the head.
"""

model = dict(
    type="ImageClassifier",
    neck=dict(type="GlobalAveragePooling"),
    head=dict(
        type="LinearClsHead",
        num_classes=10,
        init_cfg=None,  # the classifier's, below
        loss=dict(type="LabelSmoothLoss", label_smooth_val=0.1, mode="original"),
    ),
    init_cfg=[
        dict(type="TruncNormal", layer="Linear", std=0.02, bias=0.0),
        dict(type="Constant", layer="LayerNorm", val=1.0, bias=0.0),
    ],
)
