"""``byte_language_modeling``: ``language_modeling`` of bytes, with generation that goes on after a newline."""

from __future__ import annotations

from pathlib import Path

from fairseq.data import Dictionary, TruncatedDictionary
from fairseq.tasks import register_task
from fairseq.tasks.language_modeling import LanguageModelingConfig, LanguageModelingTask
from fairseq.utils import split_paths


class ByteDictionary(Dictionary):
    """fairseq's dictionary, which writes every ``</s>``, because it is the newline byte."""

    def string(self, *args, **kwargs) -> str:
        """Return tokens as text, as fairseq's dictionary does, with the ends of sentences."""
        return super().string(*args, **{**kwargs, "include_eos": True})


@register_task("byte_language_modeling", dataclass=LanguageModelingConfig)
class ByteLanguageModelingTask(LanguageModelingTask):
    """Language modelling of bytes, where fairseq's end-of-sentence token is the newline byte.

    The task trains as ``language_modeling`` does and opens its checkpoints. Generation ends at ``--max-len-b`` tokens,
    not at the end of a line.
    """

    @classmethod
    def setup_dictionary(cls, args, **unused):
        """Load the dictionaries of input and output from the folder of the data."""
        dictionary = ByteDictionary.load(str(Path(split_paths(args.data)[0], "dict.txt")))
        if args.output_dictionary_size < 0:
            return dictionary, dictionary
        return dictionary, TruncatedDictionary(dictionary, args.output_dictionary_size)

    def build_generator(self, models, args, seq_gen_cls=None, extra_gen_cls_kwargs=None, **kwargs):
        """Build fairseq's generator, which ends at a token that the corpus does not have."""
        options = {**(extra_gen_cls_kwargs or {}), "eos": self.target_dictionary.bos()}
        return super().build_generator(models, args, seq_gen_cls, options, **kwargs)
