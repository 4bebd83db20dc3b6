#!/usr/bin/env python
"""Make enwik8, the first 10^8 bytes of a Wikipedia dump, a corpus of bytes for fairseq.

    python tools/prepare/enwik8.py ~/Downloads                  # data/enwik8
    python tools/prepare/enwik8.py --check

The last 5 million bytes are for tests, the 5 million before for validation, and the first 90 million for training.
``train.txt``, ``valid.txt`` and ``test.txt`` hold the values of the bytes in decimal digits, joined by spaces, with the
newline byte as end of a line: for fairseq each byte is a token, so bits per character are the loss to base 2.
"""

from fma_tools.prepare.enwik8 import ENWIK8
from fma_tools.prepare.preparation import main

if __name__ == "__main__":
    main(ENWIK8)
