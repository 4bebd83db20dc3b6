"""The flags that choose the attention of a model."""

from dataclasses import dataclass, field

from fairseq.dataclass import ChoiceEnum, FairseqDataclass

ATTENTIONS = ("full", "fma", "fma-linear", "local", "linear", "h-transformer", "reformer")
POSITIONS = ("sinusoidal", "learned", "rotary")


@dataclass
class AttentionFlags(FairseqDataclass):
    """Which attention a model has, and its hyper-parameters; a flag ``--fma-...`` each."""

    fma_attention: ChoiceEnum(ATTENTIONS) = field(
        default="fma",
        metadata={
            "help": "self-attention: Fast Multipole Attention (fma, fma-linear), dot products of all tokens (full), "
            "or one of other libraries, from fma-mm[baselines]"
        },
    )
    fma_cell_size: int = field(default=32, metadata={"help": "fma: tokens per cell of level 1"})
    fma_rank: int = field(default=4, metadata={"help": "fma: summaries per cell; divides the cell size"})
    fma_aggregation: ChoiceEnum(("nested", "direct", "mean")) = field(
        default="nested",
        metadata={"help": "fma: how summaries are made. direct ones serve sequences of at most --tokens-per-sample"},
    )
    fma_group_bias: bool = field(
        default=False,
        metadata={"help": "fma: a summary weighs as much as the tokens that it stands for, not as one token"},
    )
    fma_window: int = field(
        default=128, metadata={"help": "local: tokens per window; a query reads its own window and the one before"}
    )
    fma_positions: ChoiceEnum(POSITIONS) = field(
        default="rotary", metadata={"help": "positions: added to the embeddings, or by rotating queries and keys"}
    )
