#!/usr/bin/env bash
# Install the wheel in an empty environment outside of the checkout, and use what it brings.
#
#   .ci/check_wheel.sh PYTHON        (PYTHON has setuptools and pip; make wheel-check runs this)
set -euo pipefail
cd "$(dirname "$0")/.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python="$work/venv/bin/python"

step() { echo "==> $*"; }
install() { "$python" -m pip install --quiet --disable-pip-version-check -c constraints.txt "$@"; }

step "1/5 building the source distribution, and the wheel from it"
"$1" tests/wheel_builder.py "$work"
wheel=$(echo "$work"/*.whl)

step "2/5 the wheel alone: PyTorch, and nothing of OpenMMLab"
"$1" -m venv "$work/venv"
install "$wheel"
mkdir "$work/empty"
(
    cd "$work/empty"
    "$python" -c "
import torch
from fma_kernels import FMAttention
print(FMAttention(64, num_heads=4, cell_size=4, ndim=2)(torch.rand(1, 320, 64), (16, 20)).shape)"
    if "$python" -c "import fma_mm" 2>error.txt; then
        echo "fma_mm is imported without mmengine" >&2
        exit 1
    fi
    grep -q 'fma_mm needs mmengine and mmcv; install them with: pip install "fma-mm\[mm\]"' error.txt
)

step "3/5 with the OpenMMLab libraries"
install "$wheel[mm]"
make --no-print-directory opencv VENV="$work/venv"
cd "$work/empty"
shipped=$("$python" -c "from fma_mm.model_zoo import files_root; print(files_root())")

step "4/5 models by name"
"$python" -c "
import fma_mm, mmpretrain, torch
print(mmpretrain.list_models('fma2d*'))
print(mmpretrain.get_model('fma2d-tiny_8xb128_in1k')(torch.rand(1, 3, 224, 224)).shape)"

step "5/5 training and testing with the shipped tools and a shipped config"
"$python" "$shipped/tools/train.py" "$shipped/configs/demo/fma2d_digits.py" --cfg-options \
    train_cfg.max_epochs=1 train_cfg.val_interval=1 train_dataloader.dataset.indices=128
"$python" "$shipped/tools/test.py" "$shipped/configs/demo/fma2d_digits.py" work_dirs/fma2d_digits/epoch_1.pth
echo "The wheel works: $(basename "$wheel")"
