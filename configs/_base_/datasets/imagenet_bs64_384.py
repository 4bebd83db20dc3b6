"""ImageNet-1K at 384x384, 64 images per GPU; whole images, resized to a square, for testing."""

_base_ = "./imagenet_bs128_224.py"

train_pipeline = _base_.train_pipeline
train_pipeline[1]["scale"] = 384
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(384, 384), backend="pillow", interpolation="bicubic"),
    dict(type="PackInputs"),
]

train_dataloader = dict(batch_size=64, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=64, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
