#!/usr/bin/env python
"""Unpack ADE20K, as in the scene parsing challenge of 2016, into the folder that mmseg's ``ADE20KDataset`` reads.

    python tools/prepare/ade20k.py ~/Downloads                  # data/ade/ADEChallengeData2016
    python tools/prepare/ade20k.py --check

``images/{training,validation}`` holds the images and ``annotations/{training,validation}``, under the same names, maps
of the 150 classes with 0 for none.
"""

from fma_tools.prepare.ade20k import ADE
from fma_tools.prepare.preparation import main

if __name__ == "__main__":
    main(ADE)
