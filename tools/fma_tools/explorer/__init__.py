"""The attention explorer: an HTML file that shows what the query under the pointer reads, and with which weights."""

from .page import ImageInput, TextInput, write_page
from .recording import Recording, record

__all__ = ["ImageInput", "Recording", "TextInput", "record", "write_page"]
