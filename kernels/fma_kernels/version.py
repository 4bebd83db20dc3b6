"""The version of the whole distribution, written here and nowhere else."""

__version__ = "0.1.0"
