"""CIFAR-10 at 32x32, 64 images per batch, cropped and flipped.

``data/cifar10`` holds ``train`` and ``val``, each with a folder of images per class.
"""

dataset_type = "CustomDataset"
data_root = "data/cifar10"
classes = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
data_preprocessor = dict(
    num_classes=10,
    mean=[125.307, 122.961, 113.8575],
    std=[51.5865, 50.847, 51.255],
    to_rgb=True,  # images are loaded as BGR; mean and std are those of RGB
)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="RandomCrop", crop_size=32, padding=4),
    dict(type="RandomFlip", prob=0.5, direction="horizontal"),
    dict(type="PackInputs"),
]
# The images of the data set have this size already: the two steps in the middle are for pictures of any other.
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="ResizeEdge", scale=32, edge="short", interpolation="area"),
    dict(type="CenterCrop", crop_size=32),
    dict(type="PackInputs"),
]

train_dataloader = dict(
    batch_size=64,
    num_workers=1,
    dataset=dict(
        type=dataset_type, data_root=data_root, data_prefix="train", classes=classes, pipeline=train_pipeline
    ),
    sampler=dict(type="InfiniteSampler", shuffle=True),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=1,
    dataset=dict(type=dataset_type, data_root=data_root, data_prefix="val", classes=classes, pipeline=test_pipeline),
    sampler=dict(type="DefaultSampler", shuffle=False),
)
val_evaluator = dict(type="Accuracy", topk=(1,))
test_dataloader = val_dataloader
test_evaluator = val_evaluator
