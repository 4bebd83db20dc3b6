"""Flags that choose the attention of a model."""

from dataclasses import dataclass, field

from fairseq.dataclass import ChoiceEnum, FairseqDataclass

import fma_kernels
from fma_kernels.backends.selection import BACKENDS

#: Attentions of ``fma_kernels``: their names on the command line, with hyphens, and in Python.
OPERATORS = {name.replace("_", "-"): name for name in fma_kernels.ATTENTIONS if name != "none"}
#: Attentions of other libraries.
BASELINES = ("local", "linear", "h-transformer", "reformer")
ATTENTIONS = (*OPERATORS, *BASELINES)
BASIS_KINDS = ("nested", "direct", "mean")
POSITIONS = ("sinusoidal", "learned", "rotary")


@dataclass
class AttentionFlags(FairseqDataclass):
    """The attention of a model and its hyper-parameters; each is a flag ``--fma-...``."""

    fma_attention: ChoiceEnum(ATTENTIONS) = field(
        default="fma",
        metadata={
            "help": "self-attention: Fast Multipole Attention (fma, fma-linear), its near field alone (near), dot "
            "products of all tokens (full), or an attention of another library, from fma-mm[baselines]"
        },
    )
    fma_cell_size: int = field(default=32, metadata={"help": "fma, fma-linear, near: tokens per cell of level 1"})
    fma_rank: int = field(
        default=4, metadata={"help": "fma, fma-linear: summaries per cell; the number divides the cell size"}
    )
    fma_basis_kind: ChoiceEnum(BASIS_KINDS) = field(
        default="nested",
        metadata={
            "help": "fma, fma-linear: weights that make the summaries. Direct ones serve sequences of at most "
            "--tokens-per-sample"
        },
    )
    fma_group_bias: bool = field(
        default=False,
        metadata={
            "help": "fma, fma-linear: a summary weighs as much as the tokens that it stands for, not as one token. On "
            "in fma_kernels, but off here: early in training such summaries draw attention away from the near field, "
            "before there is anything to read in them (docs/results.md)"
        },
    )
    fma_value_gain: float = field(
        default=0.0,
        metadata={
            "help": "fma, fma-linear: factor of the means that learned value summaries start as. With 0 the far field "
            "adds nothing at first, and models learn sooner (docs/far_field.md)"
        },
    )
    fma_backend: ChoiceEnum(BACKENDS) = field(
        default="auto",
        metadata={"help": "fma, fma-linear, near: implementation of the operators, as in fma_kernels"},
    )
    fma_window: int = field(
        default=128, metadata={"help": "local: tokens per window; a query reads its own window and the one before"}
    )
    fma_positions: ChoiceEnum(POSITIONS) = field(
        default="rotary", metadata={"help": "positions: added to the embeddings, or by rotating queries and keys"}
    )
