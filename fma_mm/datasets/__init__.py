from .digit_scenes import DigitScenes
from .digits import HandwrittenDigits

__all__ = ["DigitScenes", "HandwrittenDigits"]
