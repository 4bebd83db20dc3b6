#!/usr/bin/env python
"""Make the source code of Python's standard library a corpus of bytes for fairseq, without a download.

    python tools/prepare/stdlib.py                              # data/stdlib
    python tools/prepare/stdlib.py --check

The text is that of all ``*.py`` files of the library of the Python that runs this, its tests included, in the order of
their paths: about 31 MB. Left out are installed packages and the few files that are written when Python is built.
Written are files as of ``enwik8.py``, with the last 5 % of the bytes for tests and the 5 % before for validation, and
``stdlib.json``, which says which text it is: versions of Python differ in it.
"""

from fma_tools.prepare.preparation import main
from fma_tools.prepare.stdlib import STDLIB

if __name__ == "__main__":
    main(STDLIB)
