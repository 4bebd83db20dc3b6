import torch
from hypothesis import given
from hypothesis import strategies as st

from lm.attention.rotary import rotate


def random_heads(count: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, 1, count, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@given(start=st.integers(0, 10**7), distance=st.integers(0, 10**4), shift=st.integers(0, 10**7))
def test_products_depend_on_differences_of_positions(start, distance, shift):
    x, y = random_heads(1, 16), random_heads(1, 16, seed=1)
    products = [(rotate(x, first) * rotate(y, first + distance)).sum() for first in (start, start + shift)]
    torch.testing.assert_close(*products, rtol=0, atol=1e-6)


def test_rotation_in_single_precision_takes_far_positions():
    x = random_heads(1, 8)
    for position in (0, 1, 10**6, 2**24 + 1, 10**8 + 3):
        torch.testing.assert_close(rotate(x.float(), position), rotate(x, position).float(), rtol=0, atol=1e-6)
