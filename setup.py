"""Distribution of fma-mm: `fma_kernels` (operators), `fma_mm` (for mmengine), `lm` (for fairseq) and `fma_tools`."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.egg_info import egg_info

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "kernels/fma_kernels/version.py").read_text()).group(1)

#: What OpenMMLab's packages carry in `.mim`, where mmengine and mim look for it.
MIM_FILES = ["configs", "tools", "model-index.yml"]
#: Folders that stay out of `.mim`: the package behind the tools is installed beside `fma_mm`, where they import it.
NOT_MIM = {"__pycache__", "fma_tools"}

EXTRAS = {
    # The OpenMMLab side. scikit-learn carries the digits that the embedded demos train on; the tools draw with
    # matplotlib, and prepare data with the last three.
    "mm": [
        "torchvision>=0.20",
        "onedl-mmengine>=0.10.12",
        "onedl-mmcv>=2.3.6",
        "onedl-mmpretrain>=1.3.6",
        "onedl-mmsegmentation>=1.4.2",
        "scikit-learn>=1.4",
        "matplotlib>=3.8",
        "filelock>=3.12",
        "rich>=13",
        "scipy>=1.11",
    ],
    # The language-model side.
    "lm": ["ve-fairseq>=0.12.3", "matplotlib>=3.8", "filelock>=3.12", "rich>=13"],
    # Efficient attentions of other libraries, to compare with. The first four serve language models as well.
    "baselines": [
        "h-transformer-1d>=0.1.9",
        "linear-attention-transformer>=0.19.1",
        "local-attention>=1.11.2",
        "reformer-pytorch>=1.4.4",
        "nystrom-attention>=0.0.14",
    ],
    # ONNX files: the first two write them, the last runs them.
    "export": ["onnx>=1.20", "onnxscript>=0.7", "onnxruntime>=1.23"],
    # The documentation site, and a browser's remote control with which the tests look at it and at the explorer.
    # scikit-image carries the picture of the site's explorer.
    "docs": [
        "sphinx>=9",
        "furo>=2025.12",
        "myst-parser>=5",
        "sphinx-copybutton>=0.5.2",
        "playwright>=1.50",
        "scikit-image>=0.22",
    ],
    # Tests, type check and plots. mmdetection is one of the downstream projects that the tests use FMA2D in.
    "dev": [
        "pytest>=8",
        "pytest-xdist>=3.6",
        "hypothesis>=6.100",
        "ruff>=0.6",
        "mypy>=1.15",
        "matplotlib>=3.8",
        "numpy>=1.26",
        "onedl-mmdetection>=3.5.1",
    ],
}


class BuildWithMim(build_py):
    """Copies configs and tools into the package. An editable installation reads those of the checkout instead."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib, "fma_mm", ".mim")
        shutil.rmtree(target, ignore_errors=True)  # what an earlier build left
        for name in MIM_FILES:
            for path in [ROOT / name, *(ROOT / name).rglob("*")]:
                if path.is_file() and NOT_MIM.isdisjoint(path.relative_to(ROOT).parts):
                    copy = target / path.relative_to(ROOT)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, copy)


class EggInfoForMim(egg_info):
    """Names `fma_mm` first: in the first top-level module of a distribution, mmengine and mim look for `.mim`."""

    def write_file(self, what, filename, data):
        if what == "top-level names":
            data = "".join(sorted(data.splitlines(keepends=True), key=lambda name: name.strip() != "fma_mm"))
        super().write_file(what, filename, data)


setup(
    name="fma-mm",
    version=VERSION,
    description="Fast Multipole Attention for the OpenMMLab and fairseq ecosystems",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    project_urls={"Paper": "https://arxiv.org/abs/2310.11960"},
    keywords=["attention", "fast multipole method", "transformer", "vision backbone", "OpenMMLab", "PyTorch"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
    python_requires=">=3.10",
    package_dir={"fma_kernels": "kernels/fma_kernels", "fma_tools": "tools/fma_tools"},
    packages=[
        *find_packages("kernels"),
        *find_packages("tools"),
        *find_packages(include=["fma_mm", "fma_mm.*", "lm", "lm.*"]),
    ],
    package_data={
        "fma_kernels": ["py.typed"],  # type checkers of users read the annotations
        "fma_kernels.backends.cpp": ["source/*.h", "source/*.cpp"],  # compiled at first use
        "fma_mm": ["weights/*.pth"],
        "fma_tools.explorer": ["page.*"],
        "lm": ["weights/*"],
    },
    install_requires=["torch>=2.6"],
    extras_require=EXTRAS,
    cmdclass={"build_py": BuildWithMim, "egg_info": EggInfoForMim},
    zip_safe=False,
)
