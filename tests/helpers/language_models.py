"""Small language models, and the attentions in them, that the tests of the fairseq plugin share."""

from argparse import Namespace
from dataclasses import replace
from types import SimpleNamespace

import torch
from fairseq import options
from fairseq.data import Dictionary
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models import BaseFairseqModel, build_model
from omegaconf import DictConfig, OmegaConf

from lm.attention import AttentionFlags, SelfAttention, build_self_attention

#: Attentions of a decoder by what a test is called, as flags; an encoder has one more.
DECODERS = {
    "full": dict(fma_attention="full"),
    "near": dict(fma_attention="near"),
    "fma-nested": dict(fma_attention="fma"),
    "fma-direct": dict(fma_attention="fma", fma_basis_kind="direct"),
    "fma-mean": dict(fma_attention="fma", fma_basis_kind="mean"),
    "fma-biased": dict(fma_attention="fma", fma_group_bias=True),
    "fma-linear": dict(fma_attention="fma-linear"),
    "local": dict(fma_attention="local"),
    "linear": dict(fma_attention="linear"),
    "h-transformer": dict(fma_attention="h-transformer"),
}
ENCODERS = {**DECODERS, "reformer": dict(fma_attention="reformer")}

_ATTENTION = dict(fma_cell_size=4, fma_rank=2, fma_window=4, dropout=0.0, attention_dropout=0.0)
_ATTENTION |= dict(fma_value_gain=1.0)  # far values as large as near ones
_DECODER = dict(decoder_layers=2, decoder_embed_dim=16, decoder_input_dim=16, decoder_output_dim=16)
_DECODER |= dict(decoder_ffn_embed_dim=24, decoder_attention_heads=2)
_ENCODER = dict(encoder_layers=2, encoder_embed_dim=16, encoder_ffn_embed_dim=24, encoder_attention_heads=2)


def make_dictionary(words: int = 40) -> Dictionary:
    """fairseq's four special words, then numbers."""
    dictionary = Dictionary()
    for i in range(words):
        dictionary.add_symbol(str(i))
    return dictionary


def parse_flags(arch: str, *flags: str) -> Namespace:
    """The command line as ``fairseq-train`` reads it, without the defaults of the model."""
    task = "masked_lm" if arch.startswith("fma_mlm") else "language_modeling"
    argv = ["data", "--task", task, "--arch", arch, "--tokens-per-sample", "64", *flags]
    return options.parse_args_and_arch(options.get_training_parser(task), argv)


def parse(arch: str, *flags: str) -> DictConfig:
    """The configuration that ``fairseq-train`` makes of its command line."""
    return convert_namespace_to_omegaconf(parse_flags(arch, *flags))


def build(name: str, words: int = 40, tokens_per_sample: int = 64, **flags) -> BaseFairseqModel:
    """A model as ``hydra-train`` builds it, from the name of its registration and flags."""
    dictionary = make_dictionary(words)
    task = dict(tokens_per_sample=tokens_per_sample, max_target_positions=None, add_bos_token=False)
    config = OmegaConf.create(dict(model=dict(_name=name, **flags), task=task, common=dict(tpu=False)))
    return build_model(config.model, SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary))


def make_decoder(seed: int = 0, **flags) -> BaseFairseqModel:
    """A small ``fma_lm`` in double precision with random weights, for evaluation."""
    return _randomize("fma_lm", seed, {**_ATTENTION, **_DECODER, **flags})


def make_encoder(seed: int = 0, **flags) -> BaseFairseqModel:
    """A small ``fma_mlm`` in double precision with random weights, for evaluation."""
    return _randomize("fma_mlm", seed, {**_ATTENTION, **_ENCODER, **flags})


def _randomize(name: str, seed: int, flags: dict) -> BaseFairseqModel:
    torch.manual_seed(seed)
    model = build(name, **flags).double().eval()
    for parameter in model.parameters():  # also biases, and weights of summaries, which start the same for all
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def make_attention(
    causal: bool, max_tokens: int = 64, dropout: float = 0.0, random: bool = True, **flags
) -> SelfAttention:
    """A small self-attention of 16 channels and 2 heads in double precision, for evaluation.

    Args:
        causal, max_tokens, dropout: as in :func:`build_self_attention`.
        random: add random numbers to all weights, also to weights that start the same.
        flags: fields of :class:`AttentionFlags`.
    """
    torch.manual_seed(0)
    small = AttentionFlags(fma_cell_size=4, fma_rank=2, fma_window=4, fma_positions="sinusoidal")
    attention = build_self_attention(
        replace(small, **flags), 16, 2, causal=causal, max_tokens=max_tokens, dropout=dropout
    )
    if random:
        for parameter in attention.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
    return attention.double().eval()


def random_input(length: int, seed: int = 0) -> torch.Tensor:
    """The input (N, B, C) of :func:`make_attention`, of 2 sequences."""
    return torch.randn(length, 2, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def random_tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    """Token numbers of :func:`make_dictionary` that are no special words."""
    return torch.randint(4, 44, shape, generator=torch.Generator().manual_seed(seed))
