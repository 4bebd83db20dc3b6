"""``--tokenizer byte_values``: text as the decimal values of its bytes, which corpora of bytes are made of."""

from __future__ import annotations

from fairseq.data.encoders import register_tokenizer
from fairseq.dataclass import FairseqDataclass


@register_tokenizer("byte_values", dataclass=FairseqDataclass)
class ByteValues:
    """Turns text into the decimal values of its UTF-8 bytes, joined by spaces, and back."""

    def __init__(self, *unused):
        pass

    def encode(self, x: str) -> str:
        """Text as decimal values."""
        return " ".join(map(str, x.encode()))

    def decode(self, x: str) -> str:
        """Decimal values as text; fairseq's end of a sentence is the newline, other words are left out."""
        values = bytearray()
        for word in x.split():
            if word == "</s>":
                values += b"\n"
            elif word.isdecimal() and int(word) < 256:
                values.append(int(word))
        return values.decode(errors="replace")
