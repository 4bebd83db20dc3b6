import pytest
from fairseq.models.transformer import TransformerDecoder
from helpers.language_models import make_decoder, make_encoder, random_tokens
from helpers.tensors import LargestTensor

from lm.positions import UNBOUNDED

MAKERS = [make_decoder, make_encoder]
KINDS = ["near", "fma", "fma-linear"]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_all_pairs_is_made(make, kind, monkeypatch):
    def refuse(self, x):
        raise AssertionError("a mask of all pairs")

    monkeypatch.setattr(TransformerDecoder, "buffered_future_mask", refuse)
    length = 8192
    model = make(fma_attention=kind, tokens_per_sample=length).float()
    with LargestTensor() as largest:
        model(random_tokens(1, length))[0].sum().backward()
    assert length * 16 <= largest.numel < length**2 / 8


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("positions", ["rotary", "sinusoidal"])
def test_any_length(make, kind, positions):
    model = make(fma_attention=kind, fma_positions=positions, tokens_per_sample=64)
    assert model.max_positions() == UNBOUNDED
    for length in (1, 7, 64, 200, 1200):
        out = model(random_tokens(2, length))[0]
        assert out.shape == (2, length, 44) and out.isfinite().all()


@pytest.mark.parametrize("make", MAKERS)
def test_a_longer_sequence_changes_nothing_before(make):
    """Of a causal model; one that reads both sides must change."""
    model, tokens = make(), random_tokens(1, 200)
    changed = (model(tokens)[0][:, :64] - model(tokens[:, :64])[0]).abs().amax()
    assert changed < 1e-12 if make is make_decoder else changed > 1e-6


@pytest.mark.parametrize("make", MAKERS)
def test_learned_positions_end(make):
    model = make(fma_positions="learned", tokens_per_sample=64)
    assert model.max_positions() == 64
    assert model(random_tokens(1, 64))[0].isfinite().all()
    with pytest.raises(ValueError, match="number of tokens=65: expected at most 64, the number of learned positions"):
        model(random_tokens(1, 65))


def test_learned_positions_end_in_decoding():
    model, state = make_decoder(fma_positions="learned", tokens_per_sample=64), {}
    model.decoder(random_tokens(1, 64), incremental_state=state)
    with pytest.raises(ValueError, match="number of tokens=65: expected at most 64"):
        model.decoder(random_tokens(1, 65), incremental_state=state)


def test_learned_positions_as_many_as_asked_for():
    model = make_decoder(fma_positions="learned", tokens_per_sample=64, max_target_positions=100)
    assert model.max_positions() == 100
    assert model(random_tokens(1, 100))[0].isfinite().all()
    model = make_encoder(fma_positions="learned", tokens_per_sample=64, max_positions=100)
    assert model.max_positions() == 100
    assert model(random_tokens(1, 100))[0].isfinite().all()


def test_limit_that_the_user_sets():
    assert make_decoder(max_target_positions=100).max_positions() == 100


@pytest.mark.parametrize("make", MAKERS)
def test_direct_summaries_serve_the_length_that_they_were_built_for(make):
    model = make(fma_basis_kind="direct", tokens_per_sample=64)
    model(random_tokens(1, 64))
    with pytest.raises(ValueError, match=r"basis.num_levels=3: expected at least 4 for .*grid=\(65,\)"):
        model(random_tokens(1, 65))
