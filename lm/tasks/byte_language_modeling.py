"""``byte_language_modeling``: ``language_modeling`` of bytes, whose generation goes on behind a newline."""

from __future__ import annotations

from fairseq.tasks import register_task
from fairseq.tasks.language_modeling import LanguageModelingConfig, LanguageModelingTask


@register_task("byte_language_modeling", dataclass=LanguageModelingConfig)
class ByteLanguageModelingTask(LanguageModelingTask):
    """Language modelling of bytes, where fairseq's end-of-sentence token is the newline byte.

    Trains as ``language_modeling`` does and takes its checkpoints. Generation ends at ``--max-len-b`` tokens, not with
    the line.
    """

    def build_generator(self, models, args, seq_gen_cls=None, extra_gen_cls_kwargs=None, **kwargs):
        """fairseq's generator, which ends with a token that the corpus does not have."""
        options = {**(extra_gen_cls_kwargs or {}), "eos": self.target_dictionary.bos()}
        return super().build_generator(models, args, seq_gen_cls, options, **kwargs)
