"""A training of plain mmengine: no library's scope, no randomness."""

import torch
from mmengine.dataset import BaseDataset
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS
from torch import nn

#: The config. An epoch is two steps, of two samples each; a step's gradient is a mean over its samples.
CONFIG = """
custom_imports = dict(imports=["helpers.plain_training"])
model = dict(type="Line")
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    persistent_workers=True,
    dataset=dict(type="Ramp"),
    sampler=dict(type="DefaultSampler", shuffle=False),
)
optim_wrapper = dict(optimizer=dict(type="SGD", lr=0.01))
train_cfg = dict(by_epoch=True, max_epochs=1)
randomness = dict(seed=3)
"""


@DATASETS.register_module()
class Ramp(BaseDataset):
    """The numbers 0 to 3."""

    def load_data_list(self) -> list[dict]:
        return [dict(x=torch.tensor([float(i)])) for i in range(4)]


@MODELS.register_module()
class Line(BaseModel):
    """A line that is to be zero everywhere."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(1, 1)

    def forward(self, x, sample_idx=None, mode="loss"):
        return dict(loss=self.linear(torch.stack(x)).square().mean())
