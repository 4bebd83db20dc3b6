import pytest
import torch
from fairseq import options
from helpers.language_models import make_decoder, make_encoder, random_tokens
from omegaconf.errors import ConfigKeyError, ValidationError

MAKERS = [make_decoder, make_encoder]
SIDES = {make_decoder: "decoder", make_encoder: "encoder"}

BAD = [
    (dict(fma_cell_size=0), "fma_cell_size=0: expected an integer >= 1"),
    (dict(fma_rank=3), "fma_rank=3: expected a divisor of fma_cell_size, which is 4"),
    (dict(fma_rank=0), "fma_rank=0: expected a divisor of fma_cell_size"),
    (dict(fma_attention="local", fma_window=0), "fma_window=0: expected an integer >= 1"),
    (dict(attention_dropout=1.5), "attention_dropout=1.5: expected a probability"),
    (dict(tokens_per_sample=0), "tokens_per_sample=0: expected an integer >= 1"),
]
BAD_OF_DECODERS = [
    (dict(fma_attention="reformer"), "fma_attention='reformer': expected another for a decoder.*leaks"),
    (dict(decoder_learned_pos=True), "decoder_learned_pos=True: expected fma_positions='learned' instead"),
    (dict(no_token_positional_embeddings=True, fma_positions="learned"), "expected fma_positions='rotary' instead"),
    (dict(character_embeddings=True), "character_embeddings=True: expected none"),
    (dict(base_layers=1), "base_layers=1: expected none"),
    (dict(adaptive_input=True), "adaptive_input_cutoff=None: expected numbers of words"),
    (dict(tie_adaptive_weights=True), "adaptive_input=False: expected True, as weights are tied"),
    (
        dict(tie_adaptive_weights=True, adaptive_input=True, adaptive_input_cutoff="9", adaptive_softmax_cutoff="8"),
        "adaptive_input_cutoff='9': expected '8' as adaptive_softmax_cutoff, as weights are tied",
    ),
]


@pytest.mark.parametrize(
    "make,flags,message",
    [(make, *case) for make in MAKERS for case in BAD] + [(make_decoder, *case) for case in BAD_OF_DECODERS],
)
def test_bad_value(make, flags, message):
    with pytest.raises(ValueError, match=message):
        make(**flags)


@pytest.mark.parametrize("make", MAKERS)
def test_heads(make):
    side = SIDES[make]
    for heads in (0, 3):
        expected = f"{side}_attention_heads={heads}: expected a divisor of {side}_embed_dim, which is 16"
        with pytest.raises(ValueError, match=expected):
            make(**{f"{side}_attention_heads": heads})
    with pytest.raises(ValueError, match="fma_positions='rotary': expected another with 1 channels per head"):
        make(**{f"{side}_attention_heads": 16})
    make(**{f"{side}_attention_heads": 16}, fma_positions="sinusoidal")


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("flag", ["fma_attention", "fma_positions", "fma_basis_kind", "fma_backend"])
def test_unknown_choice(make, flag, capsys):
    with pytest.raises(ValidationError, match=rf"Invalid value 'other', expected one of (?s:.)*full_key: {flag}"):
        make(**{flag: "other"})
    arch = {make_decoder: "fma_lm", make_encoder: "fma_mlm"}[make]
    argv = ["data", "--arch", arch, f"--{flag.replace('_', '-')}", "other"]
    with pytest.raises(SystemExit):
        options.parse_args_and_arch(options.get_training_parser("masked_lm"), argv)
    assert f"--{flag.replace('_', '-')}: invalid choice: 'other'" in capsys.readouterr().err


@pytest.mark.parametrize("make", MAKERS)
def test_unknown_flag(make):
    with pytest.raises(ConfigKeyError, match="fma_windo"):
        make(fma_windo=3)


@pytest.mark.parametrize("make", MAKERS)
def test_layerdrop(make):
    model, tokens = make(**{f"{SIDES[make]}_layerdrop": 0.5}), random_tokens(1, 30)
    torch.manual_seed(0)
    in_training = [model.train()(tokens)[0] for _ in range(40)]
    assert len({out.sum().item() for out in in_training}) == 4  # each of the two layers or not
    torch.testing.assert_close(model.eval()(tokens)[0], make()(tokens)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("make", MAKERS)
def test_layers_to_keep(make):
    model = make(**{f"{SIDES[make]}_layers_to_keep": "0"})
    side = getattr(model, SIDES[make])
    assert len(getattr(side, "sentence_encoder", side).layers) == 1
