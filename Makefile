# Needs Python 3.11 or newer and make; everything else goes into .venv.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test test-all bench bench-gpu docs lint format constraints clean
.DEFAULT_GOAL := demo
# Python keeps what it has compiled: starting torch and its company takes a third of the time after the first.
unexport PYTHONDONTWRITEBYTECODE

demo: $(READY)  ## pretrain on handwritten digits, and show what a few labels are then worth
	rm -rf runs/demo
	$(BIN)/patchcast demo --out runs/demo

test: $(READY)  ## the fast suite
	$(BIN)/python -m pytest -m "not slow"

test-all: $(READY)  ## the fast suite and the long sweeps
	$(BIN)/python -m pytest

# torch's profiler, which measures memory, and a peer tell of themselves otherwise.
bench: export KINETO_LOG_LEVEL = 6
bench: export TORCH_CPP_LOG_LEVEL = ERROR
bench: export LOGURU_LEVEL = ERROR
bench: $(READY)  ## the short benchmarks, beside the peers that are installed
	$(BIN)/python -W ignore benchmarks/startup.py
	$(BIN)/python -W ignore benchmarks/input.py --images 40
	$(BIN)/python -W ignore benchmarks/imagegpt_palette.py
	$(BIN)/python -W ignore benchmarks/imagegpt_generation.py --rounds 2
	$(BIN)/python -W ignore benchmarks/imagegpt_training.py --side 32 --batch 2 --rounds 3
	$(BIN)/python -W ignore benchmarks/steps.py --out runs/bench.json

bench-gpu: $(READY)  ## everything on a GPU, in under nine minutes; writes runs/gpu.json and a table
	$(BIN)/python -W ignore benchmarks/gpu.py

docs: $(READY)  ## the site, in site/; links and anchors inside it are checked
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tests/rooms.py

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

constraints:  ## write down what is installed now as what was tested
	echo "# What was tested, on Python 3.11. Written by: make constraints" > constraints.txt
	$(BIN)/uv pip freeze --python $(BIN)/python --exclude-editable | grep -v -E "^(uv|pip|setuptools)==" >> constraints.txt

clean:
	rm -rf .venv runs site

# uv installs the CUDA wheels of torch and torchvision, which run on the CPU as well, in about twenty seconds.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e ".[dev,peers]"
	touch $@
