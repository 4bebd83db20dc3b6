"""Generation from an exported decoding step: NumPy and onnxruntime, without PyTorch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

#: Properties of the file: the words of the model in JSON, by their numbers, and the tokens of the longest sequence.
SYMBOLS, LENGTH = "fma_lm.symbols", "fma_lm.length"
#: Numbers of fairseq's special words.
PAD, END = 1, 2


class Decoder:
    """The state of a batch of sequences, from their first token on.

    Args:
        session: of a file of ``tools/export_lm.py --step``.

    Raises:
        ValueError: it is another file.
    """

    def __init__(self, session: InferenceSession):
        self._session = session
        inputs = session.get_inputs()
        self._names = [x.name for x in inputs]
        if self._names[:2] != ["token", "position"]:
            raise ValueError(f"inputs={self._names}: expected a file of tools/export_lm.py --step")
        self._state = [np.zeros(x.shape, np.float32) for x in inputs[2:]]
        self.length = int(session.get_modelmeta().custom_metadata_map[LENGTH])
        self.position = 0

    def take(self, token: np.ndarray) -> np.ndarray:
        """Take the next token of each sequence, (B,) int64: the logits of the one behind it, (B, words).

        Raises:
            ValueError: the sequences have as many tokens as the file was made for.
        """
        if self.position >= self.length:
            raise ValueError(f"position={self.position}: expected less than the {self.length} tokens of the file")
        position = np.array(self.position, np.int64)
        given = dict(zip(self._names, [token, position, *self._state], strict=True))
        logits, *self._state = self._session.run(None, given)
        self.position += 1
        return logits


def steps(session: InferenceSession, tokens: np.ndarray) -> Iterator[np.ndarray]:
    """The logits behind every token of a batch (B, N): N of (B, words)."""
    decoder = Decoder(session)
    for token in tokens.T:
        yield decoder.take(np.ascontiguousarray(token))


def greedy(session: InferenceSession, prompt: Sequence[int], count: int) -> list[int]:
    """The most probable tokens behind a prompt, one after the other, as fairseq's ``--beam 1`` finds them.

    Args:
        session: of a file of ``tools/export_lm.py --step`` for one sequence.
        prompt: numbers of its tokens, without the end of the sentence that stands before every text.
        count: tokens to write.

    Returns:
        Their numbers.

    Raises:
        ValueError: the file is another one, or is for fewer tokens.
    """
    decoder = Decoder(session)
    for token in [END, *prompt]:
        logits = decoder.take(np.array([token], np.int64))
    written = []
    for _ in range(count):
        logits[0, PAD] = -np.inf
        written.append(int(logits[0].argmax()))
        if len(written) < count:
            logits = decoder.take(np.array(written[-1:], np.int64))
    return written


def symbols(session: InferenceSession) -> list[str]:
    """The words of the model by their numbers."""
    return json.loads(session.get_modelmeta().custom_metadata_map[SYMBOLS])


def continue_bytes(session: InferenceSession, text: str, count: int) -> str:
    """A text, and the most probable bytes behind it, of a model of bytes.

    Args:
        session: of a file of ``tools/export_lm.py --step`` for one sequence.
        text: the text.
        count: bytes to write.

    Raises:
        ValueError: the file is another one, or is for fewer tokens.
    """
    words = symbols(session)
    number = {word: i for i, word in enumerate(words)}
    written = greedy(session, [number[str(byte)] for byte in text.encode()], count)
    # The end of a sentence is the newline; of the other words, those of fairseq stand for no byte.
    found = ("10" if token == END else words[token] for token in written)
    return text + bytes(int(word) for word in found if word.isdecimal()).decode(errors="replace")
