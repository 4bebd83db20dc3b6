import pytest
import torch
import torch.nn.functional as F
from helpers.language_models import DECODERS, ENCODERS, make_decoder, make_encoder, random_tokens
from hypothesis import given, settings
from hypothesis import strategies as st

PAD = 1
#: Encoders whose outputs do not depend on how much padding there is.
EXACT = [name for name in ENCODERS if name not in ("h-transformer", "reformer")]
LENGTHS = st.lists(st.integers(1, 40), min_size=2, max_size=4)


def pad(sequences: list[torch.Tensor], left: bool, extra: int = 0) -> torch.Tensor:
    length = max(map(len, sequences)) + extra
    sides = [(length - len(x), 0) if left else (0, length - len(x)) for x in sequences]
    return torch.stack([F.pad(x, side, value=PAD) for x, side in zip(sequences, sides, strict=True)])


def rows(x: torch.Tensor, lengths: list[int], left: bool) -> list[torch.Tensor]:
    """Tokens of each sequence of a padded batch (B, N, ...)."""
    return [row[-n:] if left else row[:n] for row, n in zip(x, lengths, strict=True)]


def assert_each_as_alone(forward, lengths: list[int], left: bool, extra: int) -> None:
    """``forward``: tokens (B, N) to a list of (B, N, ...)."""
    sequences = [random_tokens(n, seed=i) for i, n in enumerate(lengths)]
    for together, *alone in zip(
        forward(pad(sequences, left, extra)), *(forward(x[None]) for x in sequences), strict=True
    ):
        for mine, expected in zip(rows(together, lengths, left), alone, strict=True):
            torch.testing.assert_close(mine, expected[0], rtol=0, atol=1e-10)


def all_outputs(model):
    """Outputs of a model, and of all of its layers, as (B, N, ...)."""

    @torch.no_grad()
    def forward(tokens: torch.Tensor) -> list[torch.Tensor]:
        out, extra = model(tokens, return_all_hiddens=True)
        return [out, *(x.transpose(0, 1) for x in extra["inner_states"])]

    return forward


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("name", DECODERS)
@settings(max_examples=3)
@given(lengths=LENGTHS, extra=st.integers(0, 3), positions=st.sampled_from(["rotary", "sinusoidal", "learned"]))
def test_decoder_gives_each_sequence_what_it_gives_it_alone(name, left, lengths, extra, positions):
    model = make_decoder(**DECODERS[name], fma_positions=positions)
    assert_each_as_alone(all_outputs(model), lengths, left, extra)


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("name", EXACT)
@settings(max_examples=3)
@given(lengths=LENGTHS, extra=st.integers(0, 3), positions=st.sampled_from(["rotary", "sinusoidal", "learned"]))
def test_encoder_gives_each_sequence_what_it_gives_it_alone(name, left, lengths, extra, positions):
    model = make_encoder(**ENCODERS[name], fma_positions=positions)
    assert_each_as_alone(all_outputs(model), lengths, left, extra)


@pytest.mark.parametrize("name", ENCODERS)
def test_encoder_does_not_read_what_stands_in_padding(name):
    """Neither of the outputs of the first layer there, nor of the embedding of padding."""
    model = make_encoder(**ENCODERS[name], tokens_per_sample=300).encoder.sentence_encoder
    lengths = [300, 16, 131]  # 16: a block of h-transformer, behind which there is padding alone
    x = torch.randn(300, 3, 16, dtype=torch.float64)
    mask = torch.arange(300) >= torch.tensor(lengths)[:, None]
    outputs = []
    for value in (0.0, torch.randn_like(x)):
        torch.manual_seed(0)  # of random hashes
        y = torch.where(mask.T[..., None], value, x)
        for layer in model.layers:
            y = layer(y, encoder_padding_mask=mask)
        outputs.append(y.transpose(0, 1))
    for mine, expected in zip(*(rows(out, lengths, left=False) for out in outputs), strict=True):
        torch.testing.assert_close(mine, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("left", [False, True])
def test_encoder_dictionary_is_in_the_order_of_the_tokens(left):
    encoder = make_encoder().encoder.sentence_encoder
    lengths = [9, 23]
    tokens = pad([random_tokens(n, seed=n) for n in lengths], left)
    out = encoder(tokens, return_all_hiddens=True)
    assert torch.equal(out["encoder_padding_mask"][0], tokens == PAD)
    assert torch.equal(out["encoder_embedding"][0], encoder.embed_tokens(tokens))
    assert torch.equal(encoder.layer_norm(out["encoder_states"][-1]), out["encoder_out"][0])
    given = encoder(tokens, token_embeddings=encoder.embed_tokens(tokens))
    assert torch.equal(given["encoder_out"][0], out["encoder_out"][0])


@pytest.mark.parametrize("name", ENCODERS)
def test_a_row_of_padding_alone_does_no_harm(name):
    tokens = torch.stack([random_tokens(20), torch.full((20,), PAD)])
    for make, kinds in (make_encoder, ENCODERS), (make_decoder, DECODERS):
        if name in kinds:
            model = make(**kinds[name]).train()
            out, _ = model(tokens)
            out[:1].sum().backward()
            assert out.isfinite().all()
            assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
