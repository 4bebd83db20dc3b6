import torch
from hypothesis import given
from hypothesis import strategies as st

from lm.padding import put_back, to_right

PAD = 1


@given(rows=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), min_size=1, max_size=4), width=st.integers(0, 2))
def test_rolling(rows, width):
    length = max(left + count for left, count in rows) + width
    tokens = torch.full((len(rows), length), PAD)
    for row, (left, count) in zip(tokens, rows, strict=True):
        row[left : left + count] = torch.arange(2, 2 + count)
    rolled, origin = to_right(tokens, PAD)
    for row, (_, count) in zip(rolled, rows, strict=True):
        assert row.tolist() == [*range(2, 2 + count)] + [PAD] * (length - count)
    for x in (rolled, rolled[..., None].expand(-1, -1, 3)):
        expected = tokens if x.ndim == 2 else tokens[..., None].expand(-1, -1, 3)
        assert torch.equal(put_back(x, origin), expected)


def test_nothing_moves_without_padding_on_the_left():
    tokens = torch.tensor([[5, 6, 7, PAD, PAD], [4, 5, 6, 7, 8]])
    rolled, origin = to_right(tokens, PAD)
    assert rolled is tokens and origin is None
