"""ImageNet-1K at 224x224, 128 images per GPU, with the augmentations of DeiT and Swin.

``data/imagenet`` holds ``train`` and ``val``, each with a folder per class, or with the files that
``meta/train.txt`` and ``meta/val.txt`` list (``name label`` per line).
"""

_base_ = "./imagenet_train_bs128_224.py"

test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="ResizeEdge", scale=256, edge="short", backend="pillow", interpolation="bicubic"),
    dict(type="CenterCrop", crop_size=224),
    dict(type="PackInputs"),
]

val_dataloader = dict(
    batch_size=128,
    num_workers=8,
    dataset=dict(type=_base_.dataset_type, data_root=_base_.data_root, split="val", pipeline=test_pipeline),
    sampler=dict(type="DefaultSampler", shuffle=False),
)
val_evaluator = dict(type="Accuracy", topk=(1, 5))
test_dataloader = val_dataloader
test_evaluator = val_evaluator
