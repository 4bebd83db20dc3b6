import time

import pytest
import torch

from fma_kernels.measure import device_name, milliseconds, peak_mib, take_turns

CPU = torch.device("cpu")
MIB = 2**18  # numbers of float32


def test_peak():
    """Two of three tensors at a time, and nothing that was there before."""
    before = torch.ones(8 * MIB)

    def run():
        first, second = torch.ones(MIB), torch.ones(3 * MIB)
        del first, second
        third = torch.ones(2 * MIB)
        third += before.view(4, -1)[0]

    assert peak_mib(run, CPU) == pytest.approx(4, abs=0.01)


def test_peak_of_a_backward_pass():
    x = torch.ones(MIB, requires_grad=True)
    peak = peak_mib(lambda: x.exp().exp().sum().backward(), CPU)
    assert peak == pytest.approx(3, abs=0.01)  # both results, and the gradient of the first


def test_milliseconds():
    assert 20 <= milliseconds(lambda: time.sleep(0.02), CPU) < 2000


def test_device_name(one_thread):
    assert device_name(CPU).endswith(", 1 thread") and len(device_name(CPU)) > len(", 1 thread")


def test_turns():
    calls = []
    clocks = {name: lambda name=name: calls.append(name) or float(len(calls)) for name in "ab"}
    assert take_turns(clocks, 3) == {"a": [1.0, 3.0, 5.0], "b": [2.0, 4.0, 6.0]}
    assert calls == list("ababab")
    assert take_turns(clocks, 3, budget_s=0.0) == {"a": [7.0], "b": [8.0]}
