from .classification_report import ClassificationReport

__all__ = ["ClassificationReport"]
