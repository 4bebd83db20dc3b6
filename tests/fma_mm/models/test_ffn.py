import torch
import torch.nn.functional as F

from fma_mm.models.ffn import DepthwiseFFN


def test_equals_its_definition_on_a_map():
    ffn = DepthwiseFFN(4, 12).double()
    x = torch.randn(2, 5 * 7, 4, dtype=torch.float64)
    hidden = torch.einsum("bnc,fc->bfn", x, ffn.fc1.weight) + ffn.fc1.bias[:, None]
    padded = F.pad(hidden.view(2, 12, 5, 7), (1, 1, 1, 1))
    shifted = torch.stack([padded[:, :, i : i + 5, j : j + 7] for i in range(3) for j in range(3)], -1)
    hidden = (shifted * ffn.dwconv.weight.view(1, 12, 1, 1, 9)).sum(-1) + ffn.dwconv.bias[:, None, None]
    expected = torch.einsum("bfhw,cf->bhwc", F.gelu(hidden), ffn.fc2.weight).flatten(1, 2) + ffn.fc2.bias
    torch.testing.assert_close(ffn(x, (5, 7)), expected)


def test_tells_positions_apart():
    out = DepthwiseFFN(4, 8)(torch.ones(1, 5 * 5, 4), (5, 5)).view(5, 5, 4)
    assert not torch.allclose(out[0, 0], out[2, 2])
    torch.testing.assert_close(out[1, 2], out[2, 1])
