import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS
from torch import nn

from fma_mm.analysis.step import TrainingStep, first_batch, training_memory

CPU = torch.device("cpu")


@DATASETS.register_module()
class Noise(BaseDataset):
    """Random numbers, drawn when they are loaded."""

    def load_data_list(self) -> list[dict]:
        return [dict(number=i) for i in range(32)]

    def __getitem__(self, i: int) -> dict:
        return dict(inputs=torch.rand(250), number=i)


@MODELS.register_module()
class OneLayer(BaseModel):
    """A square matrix, 250,000 bytes; a model that draws random numbers when it is made, and changes its inputs."""

    def __init__(self, width: int = 250, frozen: bool = False):
        super().__init__()
        self.layer = nn.Linear(250, width, bias=False).requires_grad_(not frozen)
        self.scale = nn.Parameter(torch.rand(1))

    def forward(self, inputs, number=None, mode="loss"):
        x = torch.stack(inputs) if isinstance(inputs, list) else inputs
        out = self.layer(x) * self.scale
        inputs.clear()
        return dict(loss=out.square().mean())


def config(batch_size: int = 8, **model: object) -> Config:
    sampler = dict(type="DefaultSampler", shuffle=True)
    loader = dict(batch_size=batch_size, num_workers=2, prefetch_factor=2, persistent_workers=True, sampler=sampler)
    return Config(
        dict(
            model=dict(type="OneLayer", **model),
            train_dataloader=dict(dataset=dict(type="Noise"), **loader),
            optim_wrapper=dict(optimizer=dict(type="AdamW", lr=0.1, foreach=False)),
        )
    )


def test_configs_that_agree_get_one_batch():
    one, same, other = (first_batch(cfg, seed) for cfg, seed in ((config(), 1), (config(width=3), 1), (config(), 2)))
    assert len(one["inputs"]) == 8
    assert torch.equal(torch.stack(one["inputs"]), torch.stack(same["inputs"])) and one["number"] == same["number"]
    assert not torch.equal(torch.stack(one["inputs"]), torch.stack(other["inputs"]))
    assert one["number"] != other["number"]


def test_a_step_is_the_configs_own():
    step = TrainingStep(config(), first_batch(config(), 0), CPU)
    assert step.model.training
    before = {name: p.clone() for name, p in step.model.named_parameters()}
    for _ in range(2):
        step.run(step.prepare())  # the batch is there again, although the model clears its own
    # AdamW's first steps are as large as its rate, 0.1; its decay of 0.01 takes another thousandth.
    for name, parameter in step.model.named_parameters():
        assert 0.1 < (parameter - before[name]).abs().max() < 0.21
    assert len(step.batch["inputs"]) == 8


def test_memory_holds_weights_gradients_and_the_optimizers_state():
    matrix = 250 * 250 * 4 / 2**20

    def memory(**model):
        return training_memory(config(**model), first_batch(config(), 0), CPU)

    # Weights, gradients, two moments, and what AdamW makes of one of them for its update.
    assert 4 * matrix < memory() < 6.5 * matrix
    assert memory(width=2500) == pytest.approx(10 * memory(), rel=0.1)
    assert matrix < memory(frozen=True) < 2 * matrix


def test_memory_is_of_a_fresh_state():
    batch = first_batch(config(), 0)
    first, second = (training_memory(config(), batch, CPU) for _ in range(2))
    assert first == second


def test_activations_count():
    small, large = (training_memory(config(), first_batch(config(size), 0), CPU) for size in (1, 32))
    assert large - small >= 31 * 250 * 4 / 2**20  # at least what the layer makes of its input


def test_checkpointing_as_the_config_says(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "fma_mm.analysis.step.turn_on_activation_checkpointing", lambda model, names: asked.append((model, names))
    )
    cfg = config()
    cfg.activation_checkpointing = ["layer"]
    step = TrainingStep(cfg, first_batch(cfg, 0), CPU)
    assert asked == [(step.model, ["layer"])]
