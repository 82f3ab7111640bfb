# Two commands set everything up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CACHE ?= .cache
export PYTHONUNBUFFERED := 1

.PHONY: help install demo learn test quick long lint types format doctor clean

help:
	@echo "make demo    train a tiny video model with GRPO on the real engine, on a CPU, and show what it learned (15 minutes)"
	@echo "make test    what CI runs (40 minutes)        make quick   the fast tests (2 minutes)"
	@echo "make learn   longer, RECIPE=temporal_r1       make long    what CI leaves out (90 minutes)"
	@echo "make doctor  check this machine               make lint    ruff"
	@echo "make install make .venv alone              make clean   remove everything that was made here"

# Bootstraps uv inside the environment, then installs verl, vLLM (CPU build), SAM 2 and this package into it.
$(VENV)/.ready: setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not ((3, 10) <= sys.version_info[:2] < (3, 13)))' \
	  || { echo "$(PYTHON) is not Python 3.10, 3.11 or 3.12, which verl needs; say: make PYTHON=python3.11 ..."; exit 1; }
	@echo "[environment] installing verl 0.9.1, torch 2.11, vLLM 0.24 (CPU) into $(VENV): 6.5 GB on disk, 1 to 5 minutes"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@SAM2_BUILD_CUDA=0 $(BIN)/uv pip install --quiet --python $(BIN)/python -e '.[cpu,objects,dev]'
	@touch $@

install: $(VENV)/.ready

demo: $(VENV)/.ready
	@PATH="$(CURDIR)/$(BIN):$$PATH" CACHE=$(CACHE) bash recipes/tiny/run.sh demo

learn: $(VENV)/.ready
	@PATH="$(CURDIR)/$(BIN):$$PATH" CACHE=$(CACHE) SEED=$(or $(SEED),0) bash recipes/tiny/run.sh learn $(or $(RECIPE),stvg_r1)

# Tests that start engines fill the machine, one at a time; of the others, which often wait, three share two cores.
test: lint types
	@$(BIN)/python -m pytest -n 3 --dist loadfile -m "not engine and not long"
	@$(BIN)/python -m pytest -m "engine and not long"

quick: $(VENV)/.ready
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not engine and not long"

# Every recipe and variant trained for two steps, resume after a kill, two nodes: an hour and a half.
long: $(VENV)/.ready
	@$(BIN)/python -m pytest -m long

lint: $(VENV)/.ready
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

# The errors that are known stand in .basedpyright/baseline.json; `--writebaseline` writes them anew.
types: $(VENV)/.ready
	@$(BIN)/basedpyright --pythonpath $(BIN)/python

format: $(VENV)/.ready
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

doctor: $(VENV)/.ready
	@$(BIN)/verl-stvg doctor

clean:
	rm -rf $(VENV) $(CACHE) runs outputs *.egg-info build dist
