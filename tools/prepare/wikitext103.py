#!/usr/bin/env python
"""Unpack WikiText-103, in words, for fairseq.

    python tools/prepare/wikitext103.py ~/Downloads             # data/wikitext-103
    python tools/prepare/wikitext103.py --check

``wiki.train.tokens``, ``wiki.valid.tokens`` and ``wiki.test.tokens`` hold words, joined by spaces; the end of a line is
a token too.
"""

from fma_tools.prepare.preparation import main
from fma_tools.prepare.wikitext103 import WIKITEXT103

if __name__ == "__main__":
    main(WIKITEXT103)
