"""Which backend does the work, and the words about why another cannot."""

import logging

import pytest
import torch

from fma_kernels import Hierarchy, clear_caches, fma_attention
from fma_kernels.backends import selection

pytest.importorskip("triton")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def inputs(dtype=torch.float32, dim=16, device=DEVICE):
    hierarchy = Hierarchy((40,), 8, 2)
    lengths = (40, 40, 40, *[hierarchy.num_summaries] * 2)
    return [*(torch.randn(1, 1, n, dim, dtype=dtype, device=device) for n in lengths), hierarchy]


@pytest.mark.parametrize(
    ("options", "reason"),
    [(dict(dtype=torch.float64), "float64, not float32, float16 or bfloat16"), (dict(dim=8), "head dimension is 8")],
)
def test_says_why_the_kernels_cannot_run(options, reason):
    with pytest.raises(ValueError, match=f"backend='triton': expected another one for fma_attention: .*{reason}"):
        fma_attention(*inputs(**options), backend="triton")


def test_needs_a_gpu_or_the_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="the tensors are on cpu, not on a CUDA GPU"):
        fma_attention(*inputs(device="cpu"), backend="triton")


def test_names_an_absent_or_old_triton(monkeypatch):
    import triton

    clear_caches()
    monkeypatch.setattr(triton, "__version__", "3.4.1")
    assert "triton is 3.4.1, older than 3.6" in selection.why_not_triton(torch.zeros(1, 1, 1, 16))
    clear_caches()
    monkeypatch.setattr(selection.importlib.util, "find_spec", lambda name: None)
    assert selection.why_not_triton(torch.zeros(1, 1, 1, 16)) == "triton is not installed"
    clear_caches()


def test_auto_takes_the_kernels_of_a_cpu_where_they_run(caplog, monkeypatch):
    x = inputs(device="cpu")
    monkeypatch.setattr(selection, "why_not_cpp", lambda x: None)
    with caplog.at_level(logging.WARNING, "fma_kernels"):
        assert selection.choose("fma_attention", "auto", x[0]) == "cpp"
        assert selection.choose("fma_attention", "torch", x[0]) == "torch"
    assert not caplog.records
    monkeypatch.setattr(selection, "why_not_cpp", lambda x: "no GNU C++ compiler is found")
    with caplog.at_level(logging.WARNING, "fma_kernels"):
        assert torch.equal(fma_attention(*x), fma_attention(*x, backend="torch"))
        fma_attention(*x)
    assert [record.getMessage() for record in caplog.records] == [
        "fma_attention runs without the fused kernels: no GNU C++ compiler is found"
    ]


def test_reasons_of_an_operation_stand_against_the_kernels_that_they_concern(monkeypatch):
    x = inputs(device="cpu")[0]
    monkeypatch.setattr(selection, "why_not_cpp", lambda x: None)
    monkeypatch.setattr(selection, "why_not_triton", lambda x: None)
    for backend, options, chosen in [
        ("auto", dict(cpp="it drops weights"), "torch"),
        ("triton", dict(cpp="it drops weights"), "triton"),
        ("auto", dict(reason="of weights of its own"), "torch"),
    ]:
        assert selection.choose("fma_attention", backend, x, **options) == chosen
    for backend, options in [("cpp", dict(cpp="it drops")), ("triton", dict(reason="of")), ("cpp", dict(reason="of"))]:
        with pytest.raises(ValueError, match=f"backend='{backend}': expected another one for aggregate"):
            selection.choose("aggregate", backend, x, **options)


def test_auto_says_once_why_it_falls_back(caplog, monkeypatch):
    """On a GPU: stood in for by a tensor that says so."""

    class OnGPU:
        device, dtype, shape = torch.device("cuda", 0), torch.float64, (1, 1, 40, 16)

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=None: (9, 0))
    selection._said.clear()
    with caplog.at_level(logging.WARNING, "fma_kernels"):
        assert [selection.choose("fma_attention", "auto", OnGPU()) for _ in range(3)] == ["torch"] * 3
    assert [record.getMessage() for record in caplog.records] == [
        "fma_attention runs without the fused kernels: the dtype is torch.float64, not float32, float16 or bfloat16"
    ]
    OnGPU.dtype = torch.float16
    assert selection.choose("fma_attention", "auto", OnGPU()) == "triton"


def test_functions_are_marked_as_pytorch_marks_them():
    def one(): ...
    def another(): ...

    assert vars(selection.constant(one)) == vars(torch.compiler.assume_constant_result(another)) != {}
