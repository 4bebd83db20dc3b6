"""Effective receptive fields against theory, exact Jacobians and brute force."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fma_mm.analysis.receptive_field import receptive_field, smallest_square

layers = st.lists(st.tuples(st.sampled_from([1, 3, 5]), st.integers(1, 2), st.integers(1, 2)), min_size=1, max_size=4)


@given(layers, st.integers(18, 25), st.integers(18, 25))
def test_support_of_a_plain_conv_net_is_its_theoretical_receptive_field(layers, height, width):
    """(kernel, stride, dilation) per layer: exactly the pixels that a path leads to, and no other."""
    torch.manual_seed(0)
    net, channels = nn.Sequential(), 2
    for kernel, stride, dilation in layers:
        net.append(nn.Conv2d(channels, 3, kernel, stride, dilation * (kernel // 2), dilation))
        channels = 3
    images = torch.randn(2, 2, height, width, dtype=torch.float64)
    field = receptive_field(net.double(), images)

    reached = []
    for size in (height, width):
        sizes = [size]
        for _, stride, _ in layers:
            sizes.append((sizes[-1] - 1) // stride + 1)
        positions = {sizes.pop() // 2}
        for (kernel, stride, dilation), below in zip(reversed(layers), reversed(sizes), strict=True):
            taps = range(-(kernel // 2), kernel // 2 + 1)
            positions = {i * stride + dilation * j for i in positions for j in taps} & set(range(below))
        reached.append(torch.tensor([i in positions for i in range(size)]))
    assert torch.equal(field > 0, reached[0][:, None] & reached[1])


def test_full_attention_reaches_everything():
    torch.manual_seed(0)
    patches = nn.Conv2d(3, 8, 4, 4).double()
    attention = nn.MultiheadAttention(8, 2, batch_first=True).double()

    def features(images):
        maps = patches(images)
        tokens = maps.flatten(2).mT
        return attention(tokens, tokens, tokens)[0].mT.unflatten(2, maps.shape[2:])

    field = receptive_field(features, torch.randn(1, 3, 24, 32, dtype=torch.float64))
    assert (field > 0).all()


def test_one_channel_gives_the_mean_of_the_squared_gradients():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Conv2d(4, 1, 3, 2)).double()
    images = torch.randn(3, 2, 9, 9, dtype=torch.float64)
    gradients = [torch.autograd.functional.jacobian(lambda x: net(x[None])[0, 0, 1, 1], image) for image in images]
    expected = torch.stack(gradients).square().sum(1).mean(0)
    torch.testing.assert_close(receptive_field(net, images), expected)


def test_many_channels_give_the_jacobian_also_behind_a_normalisation():
    """The mean over random signs is the squared norm; the plain sum of normalised channels would have no gradient."""
    torch.manual_seed(0)
    conv = nn.Conv2d(1, 8, 5, padding=2).double()

    def features(images):
        return nn.functional.layer_norm(conv(images).movedim(1, -1), (8,)).movedim(-1, 1)

    image = torch.randn(1, 1, 5, 5, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: features(x)[0, :, 2, 2], image)
    expected = jacobian.square().sum((0, 1, 2))
    field = receptive_field(features, image.expand(5000, -1, -1, -1))
    torch.testing.assert_close(field, expected, rtol=0.1, atol=0.02 * expected.max().item())


def test_the_generator_makes_it_repeatable():
    torch.manual_seed(0)
    net, image = nn.Conv2d(1, 8, 3, padding=1), torch.randn(1, 1, 6, 6)
    first, again, other = (receptive_field(net, image, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert not image.requires_grad


def test_bad_features_are_refused():
    image = torch.randn(1, 2, 4, 4)
    with pytest.raises(ValueError, match=r"images.shape=\(2, 4, 4\): expected four dimensions"):
        receptive_field(nn.Identity(), image[0])
    with pytest.raises(ValueError, match=r"features=\(1, 2, 4\): expected maps of four dimensions"):
        receptive_field(lambda x: x.sum(3), image)
    with pytest.raises(ValueError, match=r"features=0.0: expected the energy of a finite gradient"):
        receptive_field(lambda x: 0 * x, image)


def brute_force(energy, share):
    """Smallest side, by trying every square."""
    height, width = energy.shape
    for side in range(1, max(height, width) + 1):
        rows, columns = max(1, height - side + 1), max(1, width - side + 1)
        held = max(energy[i : i + side, j : j + side].sum() for i in range(rows) for j in range(columns))
        if held >= share * energy.sum() * (1 - 1e-9):
            return side


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 100), st.sampled_from([0.1, 0.5, 0.95, 1.0]))
def test_smallest_square_is_that_of_brute_force(height, width, seed, share):
    energy = torch.rand(height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) ** 4
    energy += 1e-6  # each counts: well above the tolerances
    top, left, side = smallest_square(energy, share)
    assert side == brute_force(energy, share)
    assert energy[top : top + side, left : left + side].sum() >= share * energy.sum() * (1 - 1e-9)


def test_smallest_square_finds_its_place():
    energy = torch.zeros(20, 30)
    energy[3:7, 21:25] = 1
    assert smallest_square(energy, 1) == (3, 21, 4)
    assert smallest_square(energy, 0.5).side == 3
    assert smallest_square(energy, 1 / 16).side == 1


@pytest.mark.parametrize(
    ("energy", "share", "name"), [(torch.ones(2, 2), 0, "share"), (torch.ones(2, 2), 1.1, "share"),
                                  (-torch.ones(2, 2), 0.5, "energy"), (torch.ones(2), 0.5, "energy")],
)  # fmt: skip
def test_smallest_square_refuses_what_has_none(energy, share, name):
    with pytest.raises(ValueError, match=f"{name}="):
        smallest_square(energy, share)
