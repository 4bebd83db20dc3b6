#!/usr/bin/env python
"""Unpack ImageNet-1K (ILSVRC 2012) into the folder that mmpretrain's ``ImageNet`` reads.

    python tools/prepare/imagenet.py ~/Downloads                # data/imagenet
    python tools/prepare/imagenet.py --check

From the three archives of the challenge: training images as an archive per class, validation images, and the
development kit with the classes of the validation images. Written are ``train/WNID/*.JPEG``, ``val/*.JPEG`` and
``meta/val.txt`` with ``name label`` per line, where labels count the WordNet IDs (WNIDs) in alphabetical order.
"""

from fma_tools.prepare.imagenet import IMAGENET
from fma_tools.prepare.preparation import main

if __name__ == "__main__":
    main(IMAGENET)
