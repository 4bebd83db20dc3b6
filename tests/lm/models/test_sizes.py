import copy
import pickle
from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch
from fairseq.models import MODEL_DATACLASS_REGISTRY, BaseFairseqModel, build_model
from fairseq.models.roberta.model import RobertaModel, roberta_prenorm_architecture
from fairseq.models.transformer_lm import TransformerLanguageModel
from helpers.language_models import (
    DECODERS,
    ENCODERS,
    build,
    make_decoder,
    make_dictionary,
    make_encoder,
    parse,
    random_tokens,
)

from lm.attention import SelfAttention

PAD = 1
#: Names, with some of the sizes that make them.
DECODER_SIZES = {
    "fma_lm": dict(decoder_layers=6, decoder_embed_dim=512, fma_cell_size=32),
    "fma_lm_tiny": dict(decoder_layers=4, decoder_embed_dim=128, fma_cell_size=32),
    "fma_lm_enwik8": dict(decoder_layers=12, decoder_embed_dim=512, fma_cell_size=64),
    "fma_lm_wiki103": dict(decoder_layers=16, decoder_embed_dim=1024, fma_cell_size=64, adaptive_input=True),
}
ENCODER_SIZES = {
    "fma_mlm": dict(encoder_layers=12, encoder_embed_dim=768, fma_cell_size=32),
    "fma_mlm_tiny": dict(encoder_layers=4, encoder_embed_dim=128, fma_cell_size=32),
    "fma_mlm_wiki103": dict(encoder_layers=12, encoder_embed_dim=768, fma_cell_size=64),
}
SIZES = DECODER_SIZES | ENCODER_SIZES


def count(model: BaseFairseqModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_those_of_the_command_line_and_of_hydra(name):
    sizes = {**SIZES[name], "fma_rank": 4, "fma_positions": "rotary", "tokens_per_sample": 64}
    model = parse(name, "--dropout", "0.25").model
    assert {key: model[key] for key in sizes} == sizes
    assert (model._name, model.dropout) == (name, 0.25)
    config = MODEL_DATACLASS_REGISTRY[name]()
    assert {key: getattr(config, key) for key in SIZES[name]} == SIZES[name]


@pytest.mark.parametrize("name", ["fma_lm_tiny", "fma_mlm_tiny"])
def test_a_model_of_the_command_line_learns(name):
    config = parse(name, "--fma-attention", "fma-linear", "--fma-positions", "sinusoidal", "--fma-cell-size", "8")
    dictionary = make_dictionary()
    task = SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary)
    model = build_model(config.model, task)
    loss = model(random_tokens(2, 70))[0].logsumexp(-1).sum()
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(
    "name,words,tokens,millions",
    [("fma_lm_tiny", 260, 1024, 1.06), ("fma_lm_enwik8", 260, 1024, 41.9), ("fma_lm_wiki103", 267744, 512, 256)],
)
def test_parameters_of_decoders(name, words, tokens, millions):
    with torch.device("meta"):
        model = build(name, words=words - 4, tokens_per_sample=tokens)
    assert count(model) == pytest.approx(1e6 * millions, rel=0.005)


def test_parameters_of_a_small_encoder():
    assert count(build("fma_mlm_tiny", words=256, tokens_per_sample=1024)) == pytest.approx(1.07e6, rel=0.005)


def test_parameters_of_a_large_encoder():
    """Its layers are the same, so one and two tell how many twelve have; words cost their embedding and a bias."""
    one, two = (count(build("fma_mlm_wiki103", words=256, tokens_per_sample=512, encoder_layers=n)) for n in (1, 2))
    embeddings = 267744 * 768
    total = one + 11 * (two - one) + (267744 - 260) * 769
    assert (total, embeddings) == (pytest.approx(297e6, rel=0.005), pytest.approx(206e6, rel=0.005))


def test_adaptive_inputs_and_softmax():
    cutoffs = dict(adaptive_input_cutoff="10,20", adaptive_softmax_cutoff="10,20")
    narrow = {f"decoder_{name}": 32 for name in ("embed_dim", "input_dim", "output_dim", "ffn_embed_dim")}
    model = build("fma_lm_wiki103", decoder_layers=2, **cutoffs, **narrow)
    decoder, tokens = model.decoder, random_tokens(2, 70)
    features, _ = model(tokens)
    assert features.shape == (2, 70, 32)
    [words, *_] = [band[0].weight for band in decoder.embed_tokens.embeddings]
    assert decoder.adaptive_softmax.head.word_proj.weight is words
    losses = decoder.adaptive_softmax(features.flatten(0, 1), tokens.flatten())
    assert len(losses[0]) == 3
    probabilities = model.get_normalized_probs((features, None), log_probs=False)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(2, 70))


def test_stock_language_model_loads():
    flags = dict(decoder_layers=2, decoder_embed_dim=16, decoder_input_dim=16, decoder_output_dim=16)
    flags |= dict(decoder_ffn_embed_dim=24, decoder_attention_heads=2, decoder_normalize_before=True)
    flags |= dict(share_decoder_input_output_embed=True, activation_fn="gelu")
    for positions in ("sinusoidal", "learned"):
        stock = build("transformer_lm", **flags, decoder_learned_pos=positions == "learned").double().eval()
        assert type(stock) is TransformerLanguageModel
        model = build("fma_lm", fma_attention="full", fma_positions=positions, **flags).double().eval()
        model.load_state_dict(stock.state_dict())
        tokens = random_tokens(2, 60)
        tokens[0, 50:] = PAD
        for mine, expected in zip(model(tokens)[0], stock(tokens)[0], strict=True):
            torch.testing.assert_close(mine[:50], expected[:50], rtol=0, atol=1e-12)


def test_stock_masked_model_loads():
    flags = dict(encoder_layers=2, encoder_embed_dim=16, encoder_ffn_embed_dim=24, encoder_attention_heads=2)
    dictionary = make_dictionary()
    args = Namespace(**flags, max_positions=64)
    roberta_prenorm_architecture(args)
    stock = RobertaModel.build_model(args, SimpleNamespace(source_dictionary=dictionary)).double().eval()
    model = build("fma_mlm", fma_attention="full", fma_positions="learned", **flags).double().eval()
    model.load_state_dict(stock.state_dict())
    tokens = random_tokens(2, 60)
    tokens[0, 50:] = PAD
    tokens[1, :7] = PAD
    mine, expected = model(tokens)[0], stock(tokens)[0]
    for row, part in ((0, slice(50)), (1, slice(7, None))):
        torch.testing.assert_close(mine[row, part], expected[row, part], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ENCODERS)
def test_copies_of_models_that_ran(name):
    """fairseq's moving averages are copies."""
    for make, kinds in (make_encoder, ENCODERS), (make_decoder, DECODERS):
        if name in kinds:
            model, tokens = make(**kinds[name]), random_tokens(1, 50)
            model.train()(tokens)[0].sum().backward()
            copied = copy.deepcopy(model.eval())
            assert torch.equal(*(seeded(each, tokens) for each in (model, copied)))
            assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in copied.parameters()}
            [attention, _] = (module for module in model.modules() if isinstance(module, SelfAttention))
            x = torch.randn(50, 1, 16, dtype=torch.float64)
            sent = pickle.loads(pickle.dumps(attention))
            assert torch.equal(*(seeded(each, x) for each in (attention, sent)))


def seeded(module: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The output with the same random hashes every time."""
    torch.manual_seed(0)
    return module(x)[0]
