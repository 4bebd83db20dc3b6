# Two commands start everything: `make demo` and `make test`. Both set up .venv first, once.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.PHONY: help setup opencv demo demo-seg demo-lm test lint docs wheel-check benchmark kernel-report gpu-check clean

help:
	@echo "make demo        train FMA2D on handwritten digits on the CPU (about 2 minutes)"
	@echo "make demo-seg    train FMA2D with SegFormer's head on scenes of such digits on the CPU (about 3 minutes)"
	@echo "make demo-lm     train language models of bytes with FMA, full and local attention on the CPU (about 3 minutes)"
	@echo "make test        run the whole test suite"
	@echo "make lint        check the style and the types"
	@echo "make docs        build the documentation site: work_dirs/site/index.html"
	@echo "make wheel-check build the wheel, and use it in an empty environment (6 GB on disk while it runs)"
	@echo "make benchmark   FMA, FMA-linear and full attention side by side on this machine"
	@echo "make kernel-report registers, shared memory and spills of the fused kernels, without a GPU (about 80 seconds)"
	@echo "make gpu-check   test the fused kernels on this machine's GPU, and measure them (PYTHON=... with PyTorch and"
	@echo "                 pytest; installs nothing)"
	@echo "make clean       remove the environment and what the demo wrote"

setup: $(STAMP)

$(STAMP): constraints.txt setup.py pyproject.toml
	@echo "==> 1/3 creating $(VENV)"
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "==> 2/3 installing the pinned build tools"
	@$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt setuptools
	@echo "==> 3/3 installing the pinned packages (about 3 GB the first time)"
	@$(PY) -m pip install --disable-pip-version-check --no-build-isolation -c constraints.txt -e '.[mm,lm,baselines,export,docs,dev]'
	@$(MAKE) --no-print-directory opencv
	@touch $@

# mmcv asks for an OpenCV with windows, which a machine without a screen may lack the libraries for.
opencv:
	@$(PY) -c 'import cv2' 2>/dev/null || $(PY) -m pip install --quiet --disable-pip-version-check --no-deps \
		--force-reinstall -c constraints.txt opencv-python-headless

demo: $(STAMP)
	$(PY) tools/train.py configs/demo/fma2d_digits.py

demo-seg: $(STAMP)
	$(PY) tools/train.py configs/demo/fma2d_segformer_digits.py

demo-lm: $(STAMP)
	$(PY) tools/demo_lm.py

# Two processes of one thread each: more threads than cores wait for one another.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist worksteal --durations=10

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m mypy

docs: $(STAMP)
	$(PY) docs/build.py

wheel-check: $(STAMP)
	.ci/check_wheel.sh $(PY)

benchmark: $(STAMP)
	$(PY) tools/benchmark_attention.py

kernel-report: $(STAMP)
	$(PY) tools/kernel_resources.py $(ARGS)

# With whatever interpreter has a PyTorch for the GPU: no environment is made.
gpu-check:
	PYTHONPATH=kernels $(PYTHON) tools/gpu_check.py $(ARGS)

clean:
	rm -rf $(VENV) work_dirs build dist *.egg-info
