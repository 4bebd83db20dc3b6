"""``fma_mlm``: a bidirectional encoder with Fast Multipole Attention, for fairseq's ``masked_lm`` task."""

from argparse import ArgumentParser
from dataclasses import dataclass, field
from typing import Optional

from fairseq import utils
from fairseq.data import Dictionary
from fairseq.dataclass import ChoiceEnum
from fairseq.models.roberta.model import RobertaEncoder, RobertaModel
from fairseq.models.transformer import DEFAULT_MIN_PARAMS_TO_WRAP, TransformerConfig, TransformerEncoder
from fairseq.modules.transformer_layer import TransformerEncoderLayerBase
from fairseq.modules.transformer_sentence_encoder import init_bert_params
from omegaconf import II, open_dict
from torch import Tensor, nn

from ..attention import AttentionFlags, SelfAttention, build_self_attention
from ..fairseq_seam.layers import wrap_layer
from ..fairseq_seam.registration import register_size
from ..padding import put_back, to_right
from ..positions import max_positions, require_positions


@dataclass
class FMAMaskedModelFlags(AttentionFlags):
    """Flags of ``fma_mlm``: the flags of fairseq's ``roberta_prenorm``, which has no dataclass, and the attention's."""

    encoder_layers: int = field(default=12, metadata={"help": "encoder layers"})
    encoder_embed_dim: int = field(default=768, metadata={"help": "channels"})
    encoder_ffn_embed_dim: int = field(default=3072, metadata={"help": "channels between the two linear layers"})
    encoder_attention_heads: int = field(default=12, metadata={"help": "attention heads"})
    encoder_normalize_before: bool = field(default=True, metadata={"help": "layer norm before each block"})
    layernorm_embedding: bool = field(default=False, metadata={"help": "layer norm of the embeddings"})
    no_scale_embedding: bool = field(default=True, metadata={"help": "do not scale the embeddings"})
    untie_weights_roberta: bool = field(default=False, metadata={"help": "output weights are not the embeddings"})
    activation_fn: ChoiceEnum(utils.get_available_activation_fns()) = field(
        default="gelu", metadata={"help": "activation function"}
    )
    pooler_activation_fn: ChoiceEnum(utils.get_available_activation_fns()) = field(
        default="tanh", metadata={"help": "activation function of classification heads"}
    )
    dropout: float = field(default=0.1, metadata={"help": "dropout"})
    attention_dropout: float = field(default=0.1, metadata={"help": "dropout of attention weights"})
    activation_dropout: float = field(default=0.0, metadata={"help": "dropout after the activation function"})
    pooler_dropout: float = field(default=0.0, metadata={"help": "dropout of classification heads"})
    encoder_layerdrop: float = field(default=0.0, metadata={"help": "probability to leave out a layer"})
    encoder_layers_to_keep: Optional[str] = field(
        default=None, metadata={"help": "layers to keep, separated by commas"}
    )
    quant_noise_pq: float = field(default=0.0, metadata={"help": "quantization noise"})
    quant_noise_pq_block_size: int = field(default=8, metadata={"help": "block size of quantization noise"})
    quant_noise_scalar: float = field(default=0.0, metadata={"help": "scalar quantization noise"})
    spectral_norm_classification_head: bool = field(
        default=False, metadata={"help": "spectral norm in classification heads"}
    )
    checkpoint_activations: bool = field(default=False, metadata={"help": "compute activations again, save memory"})
    offload_activations: bool = field(default=False, metadata={"help": "keep checkpointed activations on the CPU"})
    min_params_to_wrap: int = field(
        default=DEFAULT_MIN_PARAMS_TO_WRAP, metadata={"help": "parameters of the smallest layer that FSDP shards"}
    )
    max_positions: Optional[int] = field(default=None, metadata={"help": "longest sequence; default: of the task"})
    # masked_lm has it. sentence_prediction, which classifies, has max_positions, and gives them to the model itself.
    tokens_per_sample: Optional[int] = II("oc.select:task.tokens_per_sample,null")


@dataclass
class TinyFlags(FMAMaskedModelFlags):
    """4 layers of 128 channels, for a CPU: 1.07 million parameters with 260 words and samples of 1,024 tokens."""

    encoder_layers: int = 4
    encoder_embed_dim: int = 128
    encoder_ffn_embed_dim: int = 512
    encoder_attention_heads: int = 4


@dataclass
class WikiText103Flags(FMAMaskedModelFlags):
    """12 layers of 768 channels, RoBERTa's base (arXiv 1907.11692).

    297 million parameters with 267,744 words and samples of 512 tokens, 206 million of them embeddings.
    """

    fma_cell_size: int = 64


class FMAEncoderLayer(TransformerEncoderLayerBase):
    """fairseq's encoder layer with the attention that the flags ask for.

    Args:
        cfg: fairseq's configuration of layers.
        flags: the flags of the model.
    """

    def __init__(self, cfg: TransformerConfig, flags: FMAMaskedModelFlags):
        self.flags = flags
        super().__init__(cfg)
        self.can_use_fastpath = False  # in some versions of fairseq it would bypass the attention

    def build_self_attention(self, embed_dim: int, cfg: TransformerConfig) -> SelfAttention:
        return build_self_attention(
            self.flags, embed_dim, cfg.encoder.attention_heads, causal=False, max_tokens=self.flags.max_positions,
            dropout=cfg.attention_dropout, q_noise=self.quant_noise, qn_block_size=self.quant_noise_block_size,
        )  # fmt: skip


class FMAEncoder(TransformerEncoder):
    """fairseq's encoder with the attention that the flags ask for.

    Args:
        flags: the flags of the model.
        dictionary: of the input.
        embed_tokens: the input embedding.
    """

    def build_encoder_layer(self, cfg: TransformerConfig) -> nn.Module:
        return wrap_layer(FMAEncoderLayer(cfg, flags=self.args), cfg)

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor | None = None,
        return_all_hiddens: bool = False,
        token_embeddings: Tensor | None = None,
    ) -> dict:
        """Compute the outputs of the layers.

        Args:
            src_tokens: (B, N) token numbers, padded on the right or on the left.
            src_lengths: ignored.
            return_all_hiddens: also return the outputs of all layers.
            token_embeddings: (B, N, C), used instead of the embeddings of the model.

        Returns:
            fairseq's dictionary: ``encoder_out`` [(N, B, C)], ``encoder_states``, ``encoder_padding_mask`` [(B, N)].

        Raises:
            ValueError: learned positions end before N.
        """
        require_positions(self.embed_positions, src_tokens.shape[1])
        tokens, origin = to_right(src_tokens, self.padding_idx)
        if origin is not None and token_embeddings is not None:
            token_embeddings = token_embeddings.gather(1, origin[..., None].expand_as(token_embeddings))
        out = super().forward(tokens, src_lengths, return_all_hiddens, token_embeddings)
        if origin is not None:
            for name in ("encoder_out", "encoder_states", "fc_results"):
                out[name] = [
                    None if x is None else put_back(x.transpose(0, 1), origin).transpose(0, 1) for x in out[name]
                ]
            for name in ("encoder_padding_mask", "encoder_embedding"):
                out[name] = [put_back(x, origin) for x in out[name]]
        return out

    def max_positions(self) -> int:
        """Return the length of the longest sequence: no limit unless positions are learned."""
        return max_positions(self.embed_positions, None)


class FMAMaskedEncoder(RobertaEncoder):
    """RoBERTa's encoder and its head.

    Args:
        flags: the flags of the model.
        dictionary: of the input and the output.
    """

    def build_encoder(
        self, flags: FMAMaskedModelFlags, dictionary: Dictionary, embed_tokens: nn.Embedding
    ) -> FMAEncoder:
        encoder = FMAEncoder(flags, dictionary, embed_tokens)
        encoder.apply(init_bert_params)
        return encoder

    def max_positions(self) -> int:
        return self.sentence_encoder.max_positions()


class FMAMaskedModel(RobertaModel):
    """A bidirectional encoder whose attention is chosen by flags, for the stock ``masked_lm`` task."""

    @classmethod
    def add_args(cls, parser: ArgumentParser) -> None:
        """Add the flags of the dataclass."""
        super(RobertaModel, cls).add_args(parser)

    @classmethod
    def hub_models(cls) -> dict:
        return {}

    @classmethod
    def build_model(cls, flags: FMAMaskedModelFlags, task) -> "FMAMaskedModel":
        """Build a model from its flags.

        Raises:
            ValueError: a flag does not fit the others.
            ImportError: the library of the attention is not installed.
        """
        flags.max_positions = flags.max_positions or flags.tokens_per_sample
        with open_dict(flags):
            flags.max_source_positions = flags.max_positions
            flags.encoder_learned_pos = str(flags.fma_positions) == "learned"
            flags.no_token_positional_embeddings = str(flags.fma_positions) == "rotary"
            return cls(flags, FMAMaskedEncoder(flags, task.source_dictionary))


for name, flags in {
    "fma_mlm": FMAMaskedModelFlags,
    "fma_mlm_tiny": TinyFlags,
    "fma_mlm_wiki103": WikiText103Flags,
}.items():
    register_size(name, FMAMaskedModel, flags)
