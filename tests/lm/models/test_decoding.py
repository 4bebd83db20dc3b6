from collections.abc import Iterator

import pytest
import torch
from fairseq.sequence_generator import SequenceGenerator
from helpers.language_models import DECODERS, make_decoder, random_tokens
from hypothesis import given, settings
from hypothesis import strategies as st

from fma_kernels import DecodingState, KeyValueCache
from lm.attention.base import Recomputation

EOS = 2
#: What each keeps between steps.
STATES = dict.fromkeys(DECODERS, Recomputation) | {"full": KeyValueCache}
STATES |= dict.fromkeys(["near", "fma-nested", "fma-direct", "fma-mean", "fma-biased"], DecodingState)
POSITIONS = ["rotary", "sinusoidal", "learned"]
#: Tokens of a prompt, then of every further call.
CHUNKS = st.one_of(st.lists(st.integers(1, 20), min_size=1, max_size=4), st.integers(1, 40).map(lambda n: [1] * n))


def states_of(model, state: dict) -> Iterator:
    """The state of every layer."""
    for layer in model.decoder.layers:
        yield layer.self_attn.get_incremental_state(state, "decoding")


@torch.no_grad()
def decode(model, tokens: torch.Tensor, chunks: list[int]) -> torch.Tensor:
    state, outputs, stop = {}, [], 0
    for count in chunks:
        stop += count
        outputs.append(model.decoder(tokens[:, :stop], incremental_state=state)[0])
        assert outputs[-1].shape[1] == count
    return torch.cat(outputs, 1)


@pytest.mark.parametrize("name", DECODERS)
@settings(max_examples=6)
@given(chunks=CHUNKS, positions=st.sampled_from(POSITIONS))
def test_decoding_is_the_forward_pass(name, chunks, positions):
    model = make_decoder(**DECODERS[name], fma_positions=positions, tokens_per_sample=80)
    tokens = random_tokens(2, sum(chunks))
    expected = model(tokens)[0].detach()
    torch.testing.assert_close(decode(model, tokens, chunks), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", DECODERS)
@settings(max_examples=4)
@given(data=st.data(), positions=st.sampled_from(POSITIONS))
def test_beams_move_repeat_and_end(name, data, positions):
    model = make_decoder(**DECODERS[name], fma_positions=positions)
    tokens, state = random_tokens(3, data.draw(st.integers(1, 30))), {}
    with torch.no_grad():
        model.decoder(tokens, incremental_state=state)
        for seed in range(data.draw(st.integers(1, 4))):
            order = torch.tensor(data.draw(st.lists(st.integers(0, len(tokens) - 1), min_size=1, max_size=4)))
            model.decoder.reorder_incremental_state_scripting(state, order)
            new = random_tokens(len(order), data.draw(st.integers(1, 5)), seed=seed)
            tokens = torch.cat([tokens[order], new], 1)
            out = model.decoder(tokens, incremental_state=state)[0]
            expected = model(tokens)[0][:, -new.shape[1] :]
            torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", DECODERS)
def test_scores_of_beam_search_are_those_of_the_forward_pass(name):
    model = make_decoder(**DECODERS[name])
    prompts = random_tokens(2, 5)
    prompts[:, 0] = EOS  # what fairseq starts with
    dictionary = model.decoder.dictionary
    generator = SequenceGenerator([model], dictionary, beam_size=3, max_len_b=25, eos=dictionary.bos())
    sample = dict(net_input=dict(src_tokens=prompts, src_lengths=torch.tensor([5, 5])))
    found = generator.generate([model], sample, prefix_tokens=prompts[:, 1:], bos_token=EOS)
    for beam in (beam for beams in found for beam in beams):
        tokens = torch.cat([torch.tensor([EOS]), beam["tokens"]])
        with torch.no_grad():
            scores = model.get_normalized_probs(model(tokens[None, :-1]), log_probs=True)[0]
        scores = scores.gather(1, beam["tokens"][:, None])[:, 0]
        torch.testing.assert_close(beam["positional_scores"], scores.float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", DECODERS)
def test_states(name):
    model, state = make_decoder(**DECODERS[name]), {}
    model.decoder(random_tokens(1, 3), incremental_state=state)
    assert [type(kept) for kept in states_of(model, state)] == [STATES[name]] * 2
    assert [kept.num_tokens for kept in states_of(model, state)] == [3, 3]


def test_state_of_fma_stays_small():
    def nbytes(name: str, length: int) -> int:
        model, state = make_decoder(**DECODERS[name], tokens_per_sample=2048), {}
        model.decoder(random_tokens(1, length), incremental_state=state)
        [kept, _] = states_of(model, state)
        return kept.nbytes

    assert nbytes("full", 2048) == 8 * nbytes("full", 256)
    assert nbytes("near", 2048) == nbytes("near", 256) < nbytes("full", 256) / 10
    for name in ("fma-nested", "fma-mean"):  # three levels more, for 8 times as many tokens
        assert nbytes(name, 2048) < 1.5 * nbytes(name, 256) < nbytes("full", 2048) / 10


@pytest.mark.parametrize("name", DECODERS)
def test_tokens_that_were_taken_are_refused(name):
    model, state = make_decoder(**DECODERS[name]), {}
    model.decoder(random_tokens(1, 3), incremental_state=state)
    with pytest.raises(ValueError, match=r"prev_output_tokens.shape\[1\]=3: expected more than the 3 tokens taken"):
        model.decoder(random_tokens(1, 3), incremental_state=state)
