import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from sklearn.metrics import precision_recall_fscore_support

from fma_mm import ClassificationReport

CLASSES = ("cat", "dog", "elephant")


def report(samples: list[dict]) -> tuple[dict, list[list[str]]]:
    """Metrics and the words of every line that is printed."""
    records = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    try:
        evaluator = Evaluator(ClassificationReport())
        evaluator.dataset_meta = dict(classes=CLASSES)
        for i in range(0, len(samples), 4):
            evaluator.process(samples[i : i + 4])
        metrics = evaluator.evaluate(len(samples))
    finally:
        logger.removeHandler(handler)
    return metrics, [line.split() for line in "\n".join(records).splitlines()]


def labelled(pairs: list[tuple[int, int]]) -> list[dict]:
    return [dict(gt_label=truth, pred_label=label) for truth, label in pairs]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=20))
def test_agrees_with_scikit_learn(pairs):
    metrics, lines = report(labelled(pairs))
    truth, prediction = zip(*pairs, strict=True)
    expected = precision_recall_fscore_support(truth, prediction, labels=[0, 1, 2], zero_division=0)
    for name, values in zip(("precision", "recall", "f1-score"), expected, strict=False):
        assert metrics[f"report/{name}"] == pytest.approx(100 * values.mean())
    for i, name in enumerate(CLASSES):
        (row,) = [line for line in lines if line and line[0] == name]
        assert [float(word) for word in row[1:4]] == pytest.approx(
            [100 * values[i] for values in expected[:3]], abs=0.006
        )
        assert int(row[4]) == expected[3][i]


def test_table():
    _, lines = report(labelled([(0, 0), (0, 1), (1, 1), (2, 2)]))
    assert lines[-6:] == [
        ["class", "precision", "recall", "f1-score", "images"],
        ["cat", "100.00", "50.00", "66.67", "2"],
        ["dog", "50.00", "100.00", "66.67", "1"],
        ["elephant", "100.00", "100.00", "100.00", "1"],
        [lines[-2][0]],
        ["mean", "83.33", "83.33", "77.78", "4"],
    ]


def test_scores_decide_where_there_are_any():
    """Test-time augmentation averages the scores of the views and leaves the label of the first view."""
    scores = torch.tensor([[0.1, 0.7, 0.2], [0.8, 0.1, 0.1], [0.0, 0.4, 0.6]])
    truth = [1, 0, 2]
    stale = [
        dict(gt_label=torch.tensor([t]), pred_label=torch.tensor([0]), pred_score=s)
        for t, s in zip(truth, scores, strict=True)
    ]
    metrics, _ = report(stale)
    assert metrics == {"report/precision": 100, "report/recall": 100, "report/f1-score": 100}


def test_no_images():
    metric = ClassificationReport()
    metric.dataset_meta = dict(classes=CLASSES)
    with pytest.raises(ValueError, match=r"results=\[\]: expected the labels of at least one image"):
        metric.compute_metrics([])
