"""Distribution of fma-mm: the operator library `fma_kernels` and the mmengine components `fma_mm`."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "kernels/fma_kernels/version.py").read_text()).group(1)

EXTRAS = {
    # The OpenMMLab side. scikit-learn carries the digits that the embedded demo trains on.
    "mm": [
        "torchvision>=0.20",
        "onedl-mmengine>=0.10.12",
        "onedl-mmcv>=2.3.6",
        "onedl-mmpretrain>=1.3.6",
        "onedl-mmsegmentation>=1.4.2",
        "scikit-learn>=1.4",
    ],
    # The language-model side.
    "lm": ["ve-fairseq>=0.12.3"],
    # Tests and plots. mmdetection is one of the downstream projects that the tests use FMA2D in.
    "dev": [
        "pytest>=8",
        "pytest-xdist>=3.6",
        "hypothesis>=6.100",
        "ruff>=0.6",
        "matplotlib>=3.8",
        "numpy>=1.26",
        "onedl-mmdetection>=3.5.1",
    ],
}

setup(
    name="fma-mm",
    version=VERSION,
    description="Fast Multipole Attention for the OpenMMLab and fairseq ecosystems",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    package_dir={"fma_kernels": "kernels/fma_kernels"},
    packages=[*find_packages("kernels"), *find_packages(include=["fma_mm", "fma_mm.*"])],
    install_requires=["torch>=2.6"],
    extras_require=EXTRAS,
)
