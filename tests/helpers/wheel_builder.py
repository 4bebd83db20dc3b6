"""Build the source distribution, and the wheel from it, without touching the checkout.

python tests/helpers/wheel_builder.py FOLDER
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
NOT_SOURCES = [
    *(".git", ".venv", ".hypothesis", ".*_cache", "__pycache__"),
    *("*.egg-info", "build", "dist", "data", "work_dirs"),
]


def build(folder: Path) -> tuple[Path, Path]:
    """Build what is uploaded to an index, with the installed setuptools and without a network.

    Args:
        folder: where both files go.

    Returns:
        The source distribution, and the wheel that was built from it alone.
    """
    with tempfile.TemporaryDirectory() as scratch:
        sources = Path(scratch, "sources")
        shutil.copytree(ROOT, sources, ignore=shutil.ignore_patterns(*NOT_SOURCES))
        code = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
        _run([sys.executable, "-c", code, str(folder.resolve())], sources)
    (sdist,) = folder.glob("*.tar.gz")
    pip = [sys.executable, "-m", "pip", "wheel", "--disable-pip-version-check", "--no-build-isolation", "--no-index"]
    _run([*pip, "--no-deps", "--wheel-dir", str(folder), str(sdist)], folder)
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


def _run(command: list[str], folder: Path) -> None:
    environment = {**os.environ, "PYTHONWARNINGS": "error::DeprecationWarning:setuptools"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    print(*build(Path(sys.argv[1])), sep="\n")
