import pytest
import torch
from mmengine.registry import HOOKS

from fma_mm import CPUThreadsHook


def test_sets_the_number_for_the_run_only():
    before = torch.get_num_threads()
    hook = HOOKS.build(dict(type="CPUThreadsHook", num_threads=before + 1))
    hook.before_run(None)
    assert torch.get_num_threads() == before + 1
    hook.after_run(None)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("num_threads", [0, 1.5, "all"])
def test_bad_number(num_threads):
    with pytest.raises(ValueError, match=f"num_threads={num_threads!r}.*integer >= 1"):
        CPUThreadsHook(num_threads=num_threads)
