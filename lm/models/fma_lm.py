"""``fma_lm``: a causal decoder with Fast Multipole Attention, for fairseq's ``language_modeling`` task."""

from dataclasses import dataclass

from fairseq import options
from fairseq.data import Dictionary
from fairseq.models.transformer import TransformerConfig, TransformerDecoder
from fairseq.models.transformer_lm import TransformerLanguageModel, TransformerLanguageModelConfig
from fairseq.modules import AdaptiveInput
from fairseq.modules.transformer_layer import TransformerDecoderLayerBase
from torch import Tensor, nn

from fma_kernels.checks import require

from ..attention import AttentionFlags, SelfAttention, build_self_attention
from ..fairseq_seam.layers import wrap_layer
from ..fairseq_seam.registration import register_size
from ..padding import put_back, to_right
from ..positions import max_positions, position_embeddings

#: Flags of adaptive inputs and the flags of the softmax that must equal them if the weights are tied.
TIED = {
    "adaptive_input_cutoff": "adaptive_softmax_cutoff",
    "adaptive_input_factor": "adaptive_softmax_factor",
    "decoder_input_dim": "decoder_output_dim",
}
SEEN = "seen"  # fairseq keeps the number of tokens that generation has taken under this name


@dataclass
class FMALanguageModelFlags(AttentionFlags, TransformerLanguageModelConfig):
    """Flags of ``fma_lm``: the flags of fairseq's ``transformer_lm`` and the flags of the attention."""

    decoder_normalize_before: bool = True  # as fairseq's architectures of transformer_lm have it
    activation_fn: str = "gelu"


@dataclass
class TinyFlags(FMALanguageModelFlags):
    """4 layers of 128 channels, for a CPU: 1.06 million parameters with 260 words and samples of 1,024 tokens."""

    decoder_layers: int = 4
    decoder_embed_dim: int = 128
    decoder_input_dim: int = 128
    decoder_output_dim: int = 128
    decoder_ffn_embed_dim: int = 512
    decoder_attention_heads: int = 4
    dropout: float = 0.0
    share_decoder_input_output_embed: bool = True


@dataclass
class Enwik8Flags(FMALanguageModelFlags):
    """12 layers of 512 channels, the size of character-level Transformers (Al-Rfou et al., arXiv 1808.04444).

    41.9 million parameters with 260 words and samples of 1,024 tokens.
    """

    decoder_layers: int = 12
    decoder_embed_dim: int = 512
    decoder_input_dim: int = 512
    decoder_output_dim: int = 512
    decoder_ffn_embed_dim: int = 2048
    decoder_attention_heads: int = 8
    fma_cell_size: int = 64
    share_decoder_input_output_embed: bool = True


@dataclass
class WikiText103Flags(FMALanguageModelFlags):
    """fairseq's ``transformer_lm_wiki103``: adaptive inputs and softmax (Baevski and Auli, arXiv 1809.10853).

    256 million parameters with 267,744 words and samples of 512 tokens.
    """

    decoder_layers: int = 16
    decoder_embed_dim: int = 1024
    decoder_input_dim: int = 1024
    decoder_output_dim: int = 1024
    decoder_ffn_embed_dim: int = 4096
    decoder_attention_heads: int = 8
    activation_fn: str = "relu"
    dropout: float = 0.3
    attention_dropout: float = 0.1
    activation_dropout: float = 0.1
    no_decoder_final_norm: bool = True
    adaptive_input: bool = True
    adaptive_input_cutoff: str = "20000,60000"
    adaptive_softmax_cutoff: str = "20000,60000"
    adaptive_softmax_dropout: float = 0.2
    tie_adaptive_weights: bool = True
    tie_adaptive_proj: bool = True
    fma_cell_size: int = 64


class FMADecoderLayer(TransformerDecoderLayerBase):
    """fairseq's decoder layer with the attention that the flags ask for.

    Args:
        cfg: fairseq's configuration of layers.
        flags: the flags of the model.
    """

    def __init__(self, cfg: TransformerConfig, flags: FMALanguageModelFlags):
        self.flags = flags
        super().__init__(cfg, no_encoder_attn=True)

    def build_self_attention(self, embed_dim: int, cfg: TransformerConfig, **unused) -> SelfAttention:
        return build_self_attention(
            self.flags, embed_dim, cfg.decoder.attention_heads, causal=True, max_tokens=self.flags.tokens_per_sample,
            dropout=cfg.attention_dropout, q_noise=self.quant_noise, qn_block_size=self.quant_noise_block_size,
        )  # fmt: skip


class FMADecoder(TransformerDecoder):
    """fairseq's decoder, without a mask of all pairs of tokens, and for sequences of any length.

    Args:
        flags: the flags of the model.
        dictionary: of the output.
        embed_tokens: the input embedding.
    """

    def __init__(self, flags: FMALanguageModelFlags, dictionary: Dictionary, embed_tokens: nn.Module):
        self.limit = flags.max_target_positions
        if self.limit is None:  # fairseq needs a number for its table of positions
            flags.max_target_positions = flags.tokens_per_sample
        super().__init__(flags, dictionary, embed_tokens, no_encoder_attn=True)

    def build_decoder_layer(self, cfg: TransformerConfig, no_encoder_attn: bool = True) -> nn.Module:
        return wrap_layer(FMADecoderLayer(cfg, flags=self.args), cfg)

    def extract_features(
        self, prev_output_tokens: Tensor, encoder_out: None = None, incremental_state: dict | None = None, **unused
    ) -> tuple[Tensor, dict]:
        """Compute the outputs of the last layer.

        Args:
            prev_output_tokens: (B, N) token numbers, padded on the right or on the left. With ``incremental_state`` all
                tokens so far, without padding in the new ones.
            encoder_out: None, because there is no encoder.
            incremental_state: fairseq's state of generation. It takes the tokens that it has not seen yet: the prompt
                in parallel, then any number at a time.

        Returns:
            (B, N, C), or (B, new tokens, C) with ``incremental_state``; and the outputs of all layers, (N, B, C) each,
            under ``inner_states``.

        Raises:
            ValueError: there are no new tokens, or learned positions end before N.
        """
        tokens, seen, origin = prev_output_tokens, 0, None
        length = tokens.shape[1]
        if incremental_state is None:
            tokens, origin = to_right(tokens, self.padding_idx)
        else:
            seen = self.get_incremental_state(incremental_state, SEEN) or 0
            require(length > seen, "prev_output_tokens.shape[1]", length, f"more than the {seen} tokens taken before")
            tokens = tokens[:, seen:]
            self.set_incremental_state(incremental_state, SEEN, length)

        positions = None
        if self.embed_positions is not None:
            positions = position_embeddings(self.embed_positions, seen, length)
        x, inner_states = self.run_layers(tokens, positions, incremental_state)
        if origin is not None:
            inner_states = [put_back(x.transpose(0, 1), origin).transpose(0, 1) for x in inner_states]
        return put_back(x, origin), {"attn": [None], "inner_states": inner_states}

    def max_positions(self) -> int:
        """Return the length of the longest sequence: no limit but learned positions and ``--max-target-positions``."""
        return max_positions(self.embed_positions, self.limit)

    def run_layers(
        self, tokens: Tensor, positions: Tensor | None, incremental_state: dict | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Compute the outputs of all layers for tokens that are padded on the right, or not at all.

        Args:
            tokens: (B, N) token numbers.
            positions: (N, C) embeddings of their positions; None if positions are not added to embeddings.
            incremental_state: fairseq's state of generation, with the state of every attention.

        Returns:
            The outputs behind the last layer (B, N, C), and those of the embedding and of all layers (N, B, C).
        """
        x = self._embed(tokens, positions).transpose(0, 1)
        inner_states = [x]
        for layer in self.layers:
            x, *_ = layer(x, incremental_state=incremental_state)
            inner_states.append(x)
        if self.layer_norm is not None:
            x = self.layer_norm(x)
        x = x.transpose(0, 1)
        return x if self.project_out_dim is None else self.project_out_dim(x), inner_states

    def _embed(self, tokens: Tensor, positions: Tensor | None) -> Tensor:
        x = self.embed_scale * self.embed_tokens(tokens)
        if self.quant_noise is not None:
            x = self.quant_noise(x)
        if self.project_in_dim is not None:
            x = self.project_in_dim(x)
        if positions is not None:
            x = x + positions
        if self.layernorm_embedding is not None:
            x = self.layernorm_embedding(x)
        return self.dropout_module(x)


class FMALanguageModel(TransformerLanguageModel):
    """A causal decoder whose attention is chosen by flags, for the stock ``language_modeling`` task."""

    @classmethod
    def hub_models(cls) -> dict:
        return {}

    @classmethod
    def build_model(cls, flags: FMALanguageModelFlags, task) -> "FMALanguageModel":
        """Build a model from its flags.

        Raises:
            ValueError: a flag is not supported, or does not fit the others.
            ImportError: the library of the attention is not installed.
        """
        for name in ("character_embeddings", "decoder_xformers_att_config", "base_layers"):
            value = getattr(flags, name)
            require(not value, name, value, "none: fma_lm does not support it")
        for name, positions in {"decoder_learned_pos": "learned", "no_token_positional_embeddings": "rotary"}.items():
            chosen = str(flags.fma_positions) == positions
            require(chosen or not flags[name], name, True, f"fma_positions={positions!r} instead")
            flags[name] = chosen
        _check_adaptive(flags)
        if flags.decoder_layers_to_keep:
            flags.decoder_layers = len(flags.decoder_layers_to_keep.split(","))
        if flags.adaptive_input:
            embedding = AdaptiveInput(
                len(task.source_dictionary), task.source_dictionary.pad(), flags.decoder_input_dim,
                flags.adaptive_input_factor, flags.decoder_embed_dim,
                options.eval_str_list(flags.adaptive_input_cutoff, type=int), flags.quant_noise_pq,
                flags.quant_noise_pq_block_size,
            )  # fmt: skip
        else:
            embedding = cls.build_embedding(flags, task.source_dictionary, flags.decoder_input_dim)
        return cls(FMADecoder(flags, task.target_dictionary, embedding))


def _check_adaptive(flags: FMALanguageModelFlags) -> None:
    """Raise ``ValueError`` unless the flags of adaptive inputs and softmax fit together."""
    adaptive, cutoff = flags.adaptive_input, flags.adaptive_input_cutoff
    require(cutoff or not adaptive, "adaptive_input_cutoff", cutoff, "numbers of words, as '20000,60000'")
    if flags.tie_adaptive_weights:
        require(adaptive, "adaptive_input", adaptive, "True, as weights are tied")
        for name, other in TIED.items():
            require(flags[name] == flags[other], name, flags[name], f"{flags[other]!r} as {other}, as weights are tied")


for name, flags in {
    "fma_lm": FMALanguageModelFlags,
    "fma_lm_tiny": TinyFlags,
    "fma_lm_enwik8": Enwik8Flags,
    "fma_lm_wiki103": WikiText103Flags,
}.items():
    register_size(name, FMALanguageModel, flags)
