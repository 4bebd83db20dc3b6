from .cued_scenes import CuedScenes
from .digit_scenes import DigitScenes
from .digits import HandwrittenDigits

__all__ = ["CuedScenes", "DigitScenes", "HandwrittenDigits"]
