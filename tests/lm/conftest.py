"""The plugin, imported before the tests as fairseq's commands import it: models register themselves only then."""

from argparse import Namespace
from pathlib import Path

from fairseq import utils

utils.import_user_module(Namespace(user_dir=str(Path(__file__).parents[2] / "lm")))
