"""``--tokenizer byte_values``: text as the decimal values of its bytes, the words of a corpus of bytes."""

from __future__ import annotations

from fairseq.data.encoders import register_tokenizer
from fairseq.dataclass import FairseqDataclass


@register_tokenizer("byte_values", dataclass=FairseqDataclass)
class ByteValues:
    """Turns text into the decimal values of its UTF-8 bytes, joined by spaces, and back."""

    def __init__(self, *unused):
        pass

    def encode(self, x: str) -> str:
        """Return the decimal values of a text."""
        return " ".join(map(str, x.encode()))

    def decode(self, x: str) -> str:
        """Return the text of decimal values. The end of a sentence becomes a newline; all other words are skipped."""
        values = bytearray()
        for word in x.split():
            if word == "</s>":
                values += b"\n"
            elif word.isdecimal() and int(word) < 256:
                values.append(int(word))
        return values.decode(errors="replace")
