"""Decoding with full attention against the whole causal attention."""

from itertools import accumulate, pairwise

import pytest
import torch
import torch.nn.functional as F
from helpers.tensors import random

from fma_kernels import KeyValueCache


def whole(query, key, value, mask=None, scale=None):
    count = query.shape[2]
    readable = torch.ones(count, count, dtype=torch.bool).tril()
    if mask is not None:
        readable = readable & ~mask[:, None, None]
    empty = ~readable.any(-1, keepdim=True)
    out = F.scaled_dot_product_attention(query, key, value, readable | empty, scale=scale)
    return out.masked_fill(empty, 0)


@pytest.mark.parametrize("cuts", [[40], [1] * 40, [7, 1, 12, 20], [1, 39]], ids=str)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("capacity", [0, 64])
def test_it_is_causal_attention_whichever_way_it_is_cut(cuts, masked, capacity):
    tensors = [random(2, 3, 40, 4, seed=i) for i in range(3)]
    mask = torch.zeros(2, 40, dtype=torch.bool)
    mask[1, :9] = masked  # padding on the left
    cache, outputs = KeyValueCache(scale=0.4, capacity=capacity), []
    for start, stop in pairwise([0, *accumulate(cuts)]):
        part = mask[:, start:stop] if masked and mask[:, start:stop].any() else None
        outputs.append(cache.take(*(x[:, :, start:stop] for x in tensors), part))
    torch.testing.assert_close(torch.cat(outputs, 2), whole(*tensors, mask if masked else None, scale=0.4))
    assert cache.num_tokens == 40 and cache.nbytes == 2 * tensors[0].nbytes


def test_reorder_repeats_moves_and_drops_rows():
    tensors = [random(3, 2, 20, 4, seed=i) for i in range(3)]
    mask = torch.zeros(3, 20, dtype=torch.bool)
    mask[2, :5] = True
    cache = KeyValueCache()
    cache.take(*(x[:, :, :12] for x in tensors), mask[:, :12])
    for index in (torch.tensor([2, 0, 2, 1]), torch.tensor([3, 0])):
        cache.reorder(index)
        tensors, mask = [x[index] for x in tensors], mask[index]
    out = cache.take(*(x[:, :, 12:] for x in tensors))
    torch.testing.assert_close(out, whole(*tensors, mask)[:, :, 12:])
    assert cache.nbytes == 2 * tensors[0].nbytes


def test_appended_tokens_are_read_as_those_that_were_taken():
    tensors = [random(2, 3, 20, 4, seed=i) for i in range(3)]
    mask = torch.zeros(2, 20, dtype=torch.bool)
    mask[1, :4] = True
    cache = KeyValueCache()
    cache.append(*(x[:, :, :12] for x in tensors[1:]), mask[:, :12])
    out = cache.take(*(x[:, :, 12:] for x in tensors))
    torch.testing.assert_close(out, whole(*tensors, mask)[:, :, 12:])
    with pytest.raises(ValueError, match=r"key.shape=\(2, 3, 20, 2\): expected \(2, 3, 20, 4\), to go with the tokens"):
        cache.append(tensors[1][..., :2], tensors[2][..., :2])
    assert cache.num_tokens == 20


def test_a_token_writes_one_row():
    """Memory doubles when it is full, so that most steps copy nothing."""
    cache, places = KeyValueCache(), set()
    for token in random(3, 1, 1, 100, 4).split(1, 3):
        cache.take(*token)
        places.add(cache._rows.data_ptr())
    assert len(places) <= 8


def test_bad_input_is_refused_by_name_and_changes_nothing():
    cache, x = KeyValueCache(), torch.zeros(2, 3, 5, 4)
    with pytest.raises(ValueError, match="num_tokens=0: expected at least 1 before reorder"):
        cache.reorder(torch.tensor([0]))
    with pytest.raises(ValueError, match="capacity=-1"):
        KeyValueCache(capacity=-1)
    cache.take(x, x, x)
    for query, key, mask, message in [
        (x[:, :, :0], x[:, :, :0], None, r"query.shape=\(2, 3, 0, 4\): expected \(B, H, T, d\) with T >= 1"),
        (x[:1], x[:1], None, r"query.shape=\(1, 3, 5, 4\): expected \(2, 3, 5, 4\), to go with the tokens before"),
        (x.double(), x.double(), None, "query.dtype=torch.float64: expected torch.float32"),
        (x, x[:, :2], None, r"key.shape=\(2, 2, 5, 4\)"),
        (x, x, torch.zeros(2, 4, dtype=torch.bool), r"key_padding_mask.shape=\(2, 4\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            cache.take(query, key, key, mask)
    assert cache.num_tokens == 5
