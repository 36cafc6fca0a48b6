# The commands of the README. Each sets up what it needs first: .venv, with the versions of requirements.lock, or
# .venv-integrations, with those of examples/integrations/requirements.lock.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# The first Python on the path that is new enough; override with `make PYTHON=/path/to/python3.12 ...`
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	if $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then echo $$p; break; fi; done)
VENV := .venv
BIN := $(VENV)/bin
USE := $(VENV)/.installed-exlstm
DEV := $(VENV)/.installed-dev
PEERS := $(VENV)/.installed-peers
# libraries that exlstm stands in: their versions are not those of the lock, and many of them are large
INTEGRATIONS := examples/integrations
INTEGRATIONS_VENV := .venv-integrations
INTEGRATED := $(INTEGRATIONS_VENV)/.installed

.PHONY: help venv integrations demo test test-slow test-integrations test-gpu bench-cpu bench-gpu format lint types docs ci \
	lock lock-integrations clean

help:  ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

define check_python
	@if [ -z "$(PYTHON)" ]; then \
		echo "exlstm needs Python 3.11 or newer and none is on the path; name one with: make PYTHON=/path/to/python3.12" >&2; exit 1; \
	elif ! "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
		echo "exlstm needs Python 3.11 or newer and '$(PYTHON)' is not; name one with: make PYTHON=/path/to/python3.12" >&2; exit 1; fi
endef

define write_lock  # $(1): the file, $(2): the environment whose versions it lists
	{ sed -n '/^#/p' $(1); $(2)/bin/python -m pip list --format=freeze --exclude pip --exclude triton --exclude-editable | sed 's/+cpu$$$$//'; } > $(1).new
	mv $(1).new $(1)
endef

$(USE): pyproject.toml requirements.lock
	$(check_python)
	@echo "setting up $(VENV) with the versions of requirements.lock; the first time takes some minutes"
	@"$(PYTHON)" -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e .
	@touch $@

$(DEV): $(USE)
	@echo "adding what tests, lint, types and docs need"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[dev,docs,golden]'
	@touch $@

$(PEERS): $(DEV)
	@echo "adding the software that is timed beside ours on a GPU"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[gpu,bench-gpu]'
	@touch $@

$(INTEGRATED): pyproject.toml $(INTEGRATIONS)/requirements.in $(INTEGRATIONS)/requirements.lock
	$(check_python)
	@echo "setting up $(INTEGRATIONS_VENV) with the versions of $(INTEGRATIONS)/requirements.lock; it takes some minutes"
	@"$(PYTHON)" -m venv $(INTEGRATIONS_VENV)
	@$(INTEGRATIONS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c $(INTEGRATIONS)/requirements.lock -r $(INTEGRATIONS)/requirements.in -e .
	@touch $@

venv: $(DEV)  ## .venv with everything for working on exlstm

integrations: $(INTEGRATED)  ## .venv-integrations with the libraries of examples/integrations, such as darts

demo: $(USE)  ## train a small xLSTM on real text and generate from it (about 5 minutes on 2 cores)
	$(BIN)/exlstm demo

test: $(DEV)  ## the default tests, and which of them took longest
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --durations 20 --durations-min 1

test-slow: $(DEV) test-integrations  ## the tests that take minutes, those inside other libraries first
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "slow and not gpu"

test-integrations: $(INTEGRATED)  ## our modules inside the libraries of examples/integrations
	$(INTEGRATIONS_VENV)/bin/python -m pytest -q -m slow -W default tests/integrations

test-gpu: $(DEV)  ## the tests that need an NVIDIA GPU
	@$(BIN)/python -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "No GPU: torch.cuda.is_available() is False here, so no test ran.")'
	$(BIN)/python -m pytest -q -m gpu

bench-cpu: $(DEV)  ## speed and memory next to other software, then docs/results/cpu.md, mixers.md (two hours, quiet machine)
	@code=0; $(BIN)/python -m benchmarks cpu || code=$$?; $(BIN)/python -m benchmarks report; exit $$code

bench-gpu: $(DEV)  ## speed on an NVIDIA GPU next to other kernels, then docs/results/gpu.md (about 9 minutes)
	@$(BIN)/python -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "No GPU: torch.cuda.is_available() is False here, so nothing was timed.")'
	@$(MAKE) --no-print-directory $(PEERS)
	@code=0; $(BIN)/python -m benchmarks gpu || code=$$?; $(BIN)/python -m benchmarks report; exit $$code

format: $(DEV)  ## rewrite the code in the house format
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format --quiet .

lint: $(DEV)  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEV)  ## mypy --strict on src
	$(BIN)/mypy

docs: $(DEV)  ## build the documentation into site/, warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

ci: test lint types docs  ## what .ci/run runs

lock: $(PEERS)  ## write requirements.lock from what .venv holds now
	$(call write_lock,requirements.lock,$(VENV))

lock-integrations: $(INTEGRATED)  ## write the lock of examples/integrations from what .venv-integrations holds now
	$(call write_lock,$(INTEGRATIONS)/requirements.lock,$(INTEGRATIONS_VENV))

clean:  ## remove what these commands made, except runs/
	rm -rf $(VENV) $(INTEGRATIONS_VENV) site build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info
	find src tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
