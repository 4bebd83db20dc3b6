#!/usr/bin/env bash
# Install the wheel in an empty environment outside of the checkout, and use what it brings.
#
#   .ci/check_wheel.sh PYTHON        (PYTHON has setuptools and pip; make wheel-check runs this)
set -euo pipefail
cd "$(dirname "$0")/.."
checkout=$PWD

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python="$work/venv/bin/python"

step() { echo "==> $*"; }
install() { "$python" -m pip install --quiet --disable-pip-version-check -c "$checkout/constraints.txt" "$@"; }

step "1/6 building the source distribution, and the wheel from it"
"$1" tests/helpers/wheel_builder.py "$work"
wheel=$(echo "$work"/*.whl)

step "2/6 the wheel alone: PyTorch, and nothing of OpenMMLab"
"$1" -m venv "$work/venv"
install "$wheel"
mkdir "$work/empty"
(
    cd "$work/empty"
    "$python" -c "
import torch
from fma_kernels import FMAttention
print(FMAttention(64, num_heads=4, cell_size=4, ndim=2)(torch.rand(1, 320, 64), (16, 20)).shape)"
    if command -v g++ >/dev/null && grep -qsw avx2 /proc/cpuinfo; then
        FMA_CACHE_DIR="$work/cache" "$python" -c "
import torch
from fma_kernels import fma
print('CPU kernels from the sources of the wheel:', fma(*torch.rand(3, 1, 4, 320, 16), cell_size=16, backend='cpp').shape)"
    fi
    if "$python" -c "import fma_mm" 2>error.txt; then
        echo "fma_mm is imported without mmengine" >&2
        exit 1
    fi
    grep -q 'fma_mm needs mmengine and mmcv; install them with: pip install "fma-mm\[mm\]"' error.txt
)

step "3/6 with the OpenMMLab libraries"
install "$wheel[mm]"
make --no-print-directory opencv VENV="$work/venv"
cd "$work/empty"
shipped=$("$python" -c "from fma_mm.model_zoo import files_root; print(files_root())")

step "4/6 models by name"
"$python" -c "
import fma_mm, mmpretrain, torch
fma_mm.register_models()
print(mmpretrain.list_models('fma2d*'))
print(fma_mm.get_model('fma2d-tiny_8xb128_in1k')(torch.rand(1, 3, 224, 224)).shape)
print(fma_mm.get_model('fma2d-nano_b64-33k_cifar10', pretrained=True)(torch.rand(1, 3, 32, 32)).shape)"

step "5/6 training and testing with the shipped tools and a shipped config"
"$python" "$shipped/tools/train.py" "$shipped/configs/demo/fma2d_digits.py" --cfg-options \
    train_cfg.max_epochs=1 train_cfg.val_interval=1 train_dataloader.dataset.indices=128
"$python" "$shipped/tools/test.py" "$shipped/configs/demo/fma2d_digits.py" work_dirs/fma2d_digits/epoch_1.pth

step "6/6 the fairseq plugin, which lies beside fma_mm"
install "$wheel[lm]"
plugin=$("$python" -c "import importlib.util as u; print(u.find_spec('lm').submodule_search_locations[0])")
for split in train valid; do printf '%s\n' {1..400}' 2 3 4' >$split.txt; done
"$work/venv/bin/fairseq-preprocess" --only-source --trainpref train.txt --validpref valid.txt --destdir bin >preprocess.txt
"$work/venv/bin/fairseq-train" bin --user-dir "$plugin" --task language_modeling --arch fma_lm_tiny --tokens-per-sample 256 \
    --batch-size 1 --optimizer adam --lr 0.001 --max-update 2 --save-dir lm 2>&1 | grep "done training"
"$python" "$shipped/tools/continue_text.py" "def main(" --length 20
echo "The wheel works: $(basename "$wheel")"
