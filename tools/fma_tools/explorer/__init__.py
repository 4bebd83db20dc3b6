"""The attention explorer: one HTML file in which a pointer asks what a query reads, level by level, with its weights."""

from .page import ImageInput, TextInput, write_page
from .recording import Recording, record

__all__ = ["ImageInput", "Recording", "TextInput", "record", "write_page"]
