"""A classifier of CIFAR-10, but for its backbone: that of ImageNet, without its regularisation by mixed images.

A config adds ``backbone`` and the ``in_channels`` of the head.
"""

_base_ = "./imagenet_classifier.py"

model = dict(head=dict(num_classes=10), train_cfg=None)
