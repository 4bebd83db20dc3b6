"""``byte_language_modeling``: ``language_modeling`` of bytes, whose generation goes on behind a newline."""

from __future__ import annotations

from pathlib import Path

from fairseq.data import Dictionary, TruncatedDictionary
from fairseq.tasks import register_task
from fairseq.tasks.language_modeling import LanguageModelingConfig, LanguageModelingTask
from fairseq.utils import split_paths


class ByteDictionary(Dictionary):
    """fairseq's dictionary, which writes ``</s>`` where it stands: it is the newline byte."""

    def string(self, *args, **kwargs) -> str:
        """Tokens as text, as fairseq's dictionary makes it, with the ends of sentences."""
        return super().string(*args, **{**kwargs, "include_eos": True})


@register_task("byte_language_modeling", dataclass=LanguageModelingConfig)
class ByteLanguageModelingTask(LanguageModelingTask):
    """Language modelling of bytes, where fairseq's end-of-sentence token is the newline byte.

    Trains as ``language_modeling`` does and takes its checkpoints. Generation ends at ``--max-len-b`` tokens, not with
    the line.
    """

    @classmethod
    def setup_dictionary(cls, args, **unused):
        """The dictionaries of input and output, from the folder of the data."""
        dictionary = ByteDictionary.load(str(Path(split_paths(args.data)[0], "dict.txt")))
        if args.output_dictionary_size < 0:
            return dictionary, dictionary
        return dictionary, TruncatedDictionary(dictionary, args.output_dictionary_size)

    def build_generator(self, models, args, seq_gen_cls=None, extra_gen_cls_kwargs=None, **kwargs):
        """fairseq's generator, which ends with a token that the corpus does not have."""
        options = {**(extra_gen_cls_kwargs or {}), "eos": self.target_dictionary.bos()}
        return super().build_generator(models, args, seq_gen_cls, options, **kwargs)
