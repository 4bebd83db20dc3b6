"""Fast Multipole Attention language models for fairseq: ``fairseq-train --user-dir lm``.

fairseq imports this package, then every file of ``tasks/`` and ``models/``, which registers them.
"""

from . import byte_values, compat  # noqa: F401  the tokenizer registers itself

compat.restore_numpy_compat()
compat.check_evaluation()
