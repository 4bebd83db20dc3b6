"""Fast Multipole Attention language models for fairseq: ``fairseq-train --user-dir lm``.

``import lm`` registers the models, the tasks and the tokenizer. fairseq imports the files of a ``--user-dir`` only if
nothing has imported the package before (https://github.com/facebookresearch/fairseq/pull/2815), so the package imports
them itself.
"""

try:
    import fairseq  # noqa: F401
except ImportError as error:
    raise ImportError('lm needs fairseq; install it with: pip install "fma-mm[lm]"') from error

from . import byte_values
from .fairseq_seam import patches
from .models import fma_lm, fma_mlm
from .tasks import byte_language_modeling, recall

patches.apply()

__all__ = ["byte_language_modeling", "byte_values", "fma_lm", "fma_mlm", "recall"]
