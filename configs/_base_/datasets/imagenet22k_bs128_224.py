"""ImageNet-22K (the 21,841 classes of the full release) at 224x224, 128 images per GPU, for pre-training only.

``data/imagenet22k/train`` holds a folder per class. Listing the files in ``data/imagenet22k/meta/train.txt``
(``name label`` per line) saves the search through 14 million of them at every start.
"""

_base_ = "./imagenet_train_bs128_224.py"

data_preprocessor = dict(num_classes=21841)
train_dataloader = dict(dataset=dict(type="ImageNet21k", data_root="data/imagenet22k"))
