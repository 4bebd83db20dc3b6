"""A table of the classes, printed at every validation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from mmengine.registry import METRICS
from torch import Tensor

from fma_kernels.checks import require


@METRICS.register_module()
class ClassificationReport(BaseMetric):
    """Precision, recall, F1 score and number of images of every class, as a printed table, and their means.

    Reads ``gt_label`` of the data samples (one label per image), and as prediction the largest of ``pred_score`` where
    there are scores, else ``pred_label``, as mmpretrain's ``Accuracy`` does. (Its test-time augmentation averages the
    scores, and leaves the label of one view.) All figures but the numbers of images are in percent; a class that is
    never predicted has precision 0, one that has no image has recall 0.

    The metrics are the means over the classes: ``precision``, ``recall`` and ``f1-score``.

    Args:
        **kwargs: arguments of mmengine's ``BaseMetric``: ``collect_device``, ``prefix``, ``collect_dir``.
    """

    default_prefix = "report"

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keep the true and the predicted label of every image."""
        self.results += [(int(sample["gt_label"]), _prediction(sample)) for sample in data_samples]

    def compute_metrics(self, results: list[tuple[int, int]]) -> dict[str, float]:
        """Print the table of all images and return the means.

        Args:
            results: true and predicted label of every image.

        Raises:
            ValueError: there is no image.
        """
        require(len(results) > 0, "results", results, "the labels of at least one image")
        classes = [str(name) for name in self.dataset_meta["classes"]]
        confusion = torch.zeros(len(classes), len(classes), dtype=torch.float64)
        truth, prediction = torch.tensor(results).unbind(1)
        confusion.index_put_((truth, prediction), torch.ones(len(results), dtype=torch.float64), accumulate=True)

        hits, support, predicted = confusion.diag(), confusion.sum(1), confusion.sum(0)
        figures = {
            "precision": 100 * hits / predicted.clamp(min=1),
            "recall": 100 * hits / support.clamp(min=1),
            "f1-score": 200 * hits / (support + predicted).clamp(min=1),
        }
        print_log("\n" + _table(classes, figures, support), logger="current")
        return {name: values.mean().item() for name, values in figures.items()}


def _prediction(sample: dict) -> int:
    """The predicted label of one image."""
    score = sample.get("pred_score")
    return int(sample["pred_label"] if score is None else score.argmax())


def _table(classes: list[str], figures: dict[str, Tensor], support: Tensor) -> str:
    """One line per class under a header, and a last one with the means."""
    width = max(map(len, [*classes, "class", "mean"]))
    lines = [f"{'class':<{width}}" + "".join(f"{name:>12}" for name in figures) + f"{'images':>9}"]
    rows = [(name, [values[i] for values in figures.values()], support[i]) for i, name in enumerate(classes)]
    rows.append(("mean", [values.mean() for values in figures.values()], support.sum()))
    for name, values, images in rows:
        lines.append(f"{name:<{width}}" + "".join(f"{value:>12.2f}" for value in values) + f"{int(images):>9}")
    lines.insert(-1, "-" * len(lines[0]))
    return "\n".join(lines)
