import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import PARAM_SCHEDULERS

from fma_mm.training_length import train_for

WARM_UP = dict(type="LinearLR", start_factor=0.01, begin=0, end=20)
COSINE = dict(type="CosineAnnealingLR", eta_min=0.1, begin=20, end=100)


def config(*schedulers: dict, by_epoch: bool = False, **train_cfg: object) -> Config:
    cfg = dict(type="IterBasedTrainLoop", max_iters=100, val_interval=10, **train_cfg)
    if by_epoch:
        cfg = dict(by_epoch=True, max_epochs=100, dynamic_intervals=[(90, 1)])
    return Config(dict(train_cfg=cfg, param_scheduler=[s | dict(by_epoch=by_epoch) for s in schedulers]))


def rates(cfg: Config, steps: int) -> list[float]:
    """Learning rate of every step, as mmengine's own schedulers make it."""
    wrapper = OptimWrapper(torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0))
    schedulers = [PARAM_SCHEDULERS.build(s, default_args=dict(optimizer=wrapper)) for s in cfg.param_scheduler]
    found = []
    for _ in range(steps):
        found.append(wrapper.get_lr()["lr"][0])
        wrapper.step()
        for scheduler in schedulers:
            scheduler.step()
    return found


@pytest.mark.parametrize("by_epoch", [False, True])
def test_own_length_changes_nothing(by_epoch):
    cfg = config(WARM_UP, COSINE, by_epoch=by_epoch)
    train_for(cfg, 100)
    assert rates(cfg, 100) == rates(config(WARM_UP, COSINE), 100)
    assert cfg.train_cfg == dict(type="IterBasedTrainLoop", max_iters=100, val_interval=100)


@pytest.mark.parametrize("by_epoch", [False, True])
@pytest.mark.parametrize(
    "schedulers",
    [
        [WARM_UP, COSINE],
        [dict(type="PolyLR", eta_min=0.0, power=0.9, begin=0, end=100)],
        [dict(type="MultiStepLR", milestones=[30, 90], gamma=0.1)],
        [dict(type="StepLR", step_size=30, gamma=0.5)],
        [dict(type="ConstantLR", factor=0.3, begin=0, end=50)],
    ],
    ids=lambda schedulers: schedulers[-1]["type"],
)
def test_shape_stays(schedulers, by_epoch):
    cfg = config(*schedulers, by_epoch=by_epoch)
    train_for(cfg, 1000)
    own = rates(config(*schedulers), 100)
    for i, rate in enumerate(rates(cfg, 1000)):
        around = own[max(0, i // 10 - 1) : i // 10 + 2]
        assert min(around) - 0.001 <= rate <= max(around) + 0.001


def test_warm_up_that_vanishes():
    cfg = config(WARM_UP, COSINE)
    train_for(cfg, 5)
    assert [s.type for s in cfg.param_scheduler] == ["CosineAnnealingLR"]
    assert rates(cfg, 5)[0] == 1.0
    cfg = config(WARM_UP, COSINE)
    train_for(cfg, 10)
    assert rates(cfg, 10)[:2] == pytest.approx([0.01, 1.0])
    assert rates(cfg, 10)[-1] < 0.2


def test_without_a_schedule():
    for empty in ([], None):
        cfg = Config(dict(train_cfg=dict(by_epoch=True, max_epochs=3), param_scheduler=empty))
        train_for(cfg, 7)
        assert cfg.param_scheduler == [] and cfg.train_cfg.max_iters == 7


@pytest.mark.parametrize(
    "cfg, message",
    [
        (config(dict(type="OneCycleLR", eta_max=1.0, total_steps=100)), "param_scheduler='OneCycleLR'.*one of"),
        (config(dict(type="mmengine.ExponentialLR", gamma=0.9)), "param_scheduler='ExponentialLR'.*one of"),
        (
            Config(dict(train_cfg=dict(by_epoch=True, max_epochs=3), param_scheduler=WARM_UP | dict(by_epoch=False))),
            "param_scheduler='LinearLR'.*one in epochs",
        ),
        (
            Config(dict(train_cfg=dict(type="IterBasedTrainLoop", max_iters=3), param_scheduler=[WARM_UP])),
            "param_scheduler='LinearLR'.*one in iterations",
        ),
        (Config(dict(train_cfg=dict(type="OwnLoop"), param_scheduler=[])), "train_cfg=.*max_iters or max_epochs"),
    ],
)
def test_what_cannot_be_scaled(cfg, message):
    before = cfg.to_dict()
    with pytest.raises(ValueError, match=message):
        train_for(cfg, 10)
    assert cfg.to_dict() == before
    with pytest.raises(ValueError, match=r"iterations=0"):
        train_for(config(WARM_UP), 0)
