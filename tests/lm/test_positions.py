import pytest
import torch
from fairseq.modules import LearnedPositionalEmbedding, SinusoidalPositionalEmbedding

from lm.positions import UNBOUNDED, max_positions, position_embeddings, require_positions

PAD = 1  # fairseq numbers positions from the next number on


def test_sinusoidal_positions_grow():
    module = SinusoidalPositionalEmbedding(16, PAD, init_size=64 + PAD + 1)
    table = module.get_embedding(5000, 16, PAD)
    for start, stop in ((0, 3), (1000, 3000), (4000, 4001), (7, 9)):
        expected = table[PAD + 1 + start : PAD + 1 + stop]
        torch.testing.assert_close(position_embeddings(module, start, stop), expected, rtol=0, atol=0)
    assert max_positions(module, None) == max_positions(None, None) == UNBOUNDED
    assert max_positions(module, 100) == 100
    require_positions(module, 10**9)


def test_learned_positions_end():
    module = LearnedPositionalEmbedding(64 + PAD + 1, 16, PAD)
    everywhere = module(torch.full((1, 64), PAD + 1))[0]  # a sequence without padding
    assert torch.equal(position_embeddings(module, 3, 64), everywhere[3:])
    assert (max_positions(module, None), max_positions(module, 100), max_positions(module, 10)) == (64, 64, 10)
    for refused in (lambda: position_embeddings(module, 64, 65), lambda: require_positions(module, 65)):
        with pytest.raises(ValueError, match="number of tokens=65: expected at most 64, the number of learned"):
            refused()
