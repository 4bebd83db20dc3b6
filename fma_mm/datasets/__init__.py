from .digits import HandwrittenDigits

__all__ = ["HandwrittenDigits"]
