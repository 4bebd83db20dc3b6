"""Commands that train language models: a recipe of ``configs/lm`` with any attention and context."""

from __future__ import annotations

import argparse
import importlib.util
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

from ..command import CommandError

#: What stands behind an attention on the command line, and the flag of the model that it sets.
OPTIONS = {
    "cell": "fma_cell_size",
    "rank": "fma_rank",
    "basis_kind": "fma_basis_kind",
    "group_bias": "fma_group_bias",
    "value_gain": "fma_value_gain",
    "window": "fma_window",
    "positions": "fma_positions",
}
#: On a CPU, glibc gives large tensors back to the system at once; asking for them anew takes up to half of the time.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**34), "MALLOC_TOP_PAD_": str(2**28)}


@dataclass(frozen=True)
class Variant:
    """An attention and its hyper-parameters, written ``ATTENTION[:OPTION=VALUE,...]``.

    Attributes:
        text: how it is written.
        attention: value of ``--fma-attention``.
        options: the other flags of the model, without their dashes, and their values.
    """

    text: str
    attention: str
    options: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Variant:
        """Read a variant.

        Raises:
            argparse.ArgumentTypeError: it is not written as stated above.
        """
        attention, _, rest = text.partition(":")
        pairs = [pair.partition("=") for pair in rest.split(",")] if rest else []
        if not attention or any(key not in OPTIONS or not value for key, _, value in pairs):
            known = ", ".join(f"{key}=..." for key in OPTIONS)
            raise argparse.ArgumentTypeError(f"{text!r}, expected ATTENTION or ATTENTION:OPTION=VALUE,... with {known}")
        return cls(text, attention, {OPTIONS[key]: value for key, _, value in pairs})

    @property
    def folder(self) -> str:
        """A name for files."""
        return re.sub(r"[^\w.-]+", "_", self.text)

    @property
    def overrides(self) -> list[str]:
        """Changes of a recipe."""
        return [f"model.{key}={value}" for key, value in {"fma_attention": self.attention, **self.options}.items()]


def plugin() -> Path:
    """The folder of the fairseq plugin.

    Raises:
        CommandError: it, or fairseq, is not installed.
    """
    for name in ("fairseq", "lm"):
        if importlib.util.find_spec(name) is None:
            raise CommandError(f"{name} is not installed; install it with: pip install 'fma-mm[lm]'")
    return Path(importlib.util.find_spec("lm").submodule_search_locations[0])


def shipped_checkpoint() -> Path:
    """The byte model that ships with the plugin; its dictionary lies beside it.

    Raises:
        CommandError: the plugin is not installed, or the file is missing or is not the one that was published.
    """
    from fma_kernels.checks import require_published  # imports torch, which the commands of trainings do without

    folder = plugin() / "weights"
    checkpoint = next(folder.glob("fma_lm_stdlib-*.pt"), folder / "fma_lm_stdlib-HASH.pt")
    try:
        require_published(checkpoint)
    except ValueError as error:
        raise CommandError(str(error)) from error
    return checkpoint


def hydra_value(path: Path) -> str:
    """A path as the value of an override: in quotes where hydra's grammar would read its characters as its own."""
    from hydra.core.override_parser.types import Quote, QuotedString  # comes with fairseq, which is optional

    text = str(path)
    return text if re.fullmatch(r"[\w./+-]+", text, re.ASCII) else QuotedString(text, Quote.single).with_quotes()


def training_command(
    config: Path, data: Path, out: Path, variant: Variant | None, context: int | None, overrides: list[str]
) -> list[str]:
    """The command that trains.

    Args:
        config: the recipe.
        data: folder that ``fairseq-preprocess`` wrote.
        out: folder for the log and, below it, checkpoints.
        variant: the attention; None for that of the recipe.
        context: tokens per sample; None for that of the recipe.
        overrides: further changes of the recipe, KEY=VALUE.

    Raises:
        CommandError: a file is missing, or an argument is outside of what is stated above.
    """
    if config.suffix != ".yaml" or not config.is_file():
        raise CommandError(f"config: {config}, expected a recipe, a .yaml file")
    parts = data / "input0" if (data / "input0").is_dir() else data  # of sentence_prediction, or of language models
    for name in ("dict.txt", "train.bin"):
        if not (parts / name).is_file():
            raise CommandError(f"--data: {data}, expected a folder that fairseq-preprocess wrote; it has no {name}")
    if context is not None and context < 1:
        raise CommandError(f"--context: {context}, expected a number of tokens >= 1")
    for text in overrides:
        if not re.match(r"[\w.]+=", text):
            raise CommandError(f"{text!r}: expected KEY=VALUE, such as optimization.max_update=1000")
    out = out.resolve()
    changes = [
        f"common.user_dir={hydra_value(plugin())}",
        f"task.data={hydra_value(data.resolve())}",
        f"checkpoint.save_dir={hydra_value(out / 'checkpoints')}",
        *([] if context is None else [f"task.tokens_per_sample={context}"]),
        *([] if variant is None else variant.overrides),
        *overrides,
    ]
    return [
        sys.executable, "-m", "fairseq_cli.hydra_train",
        "--config-dir", str(config.parent.resolve()), "--config-name", config.stem,
        f"hydra.run.dir={hydra_value(out)}", *(f"++{change}" for change in changes),
    ]  # fmt: skip


def default_out(config: Path, variant: Variant | None, context: int | None) -> Path:
    """Default folder of a run."""
    parts = [config.stem, *([] if context is None else [str(context)]), *([variant.folder] if variant else [])]
    return Path("work_dirs", "_".join(parts))
