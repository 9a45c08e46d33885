# `make` lists the targets. Each makes the virtual environment first where it isn't there yet.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
KIND ?= auto
OUT ?= runs/r1-tiny
PYTEST = $(VENV)/bin/python -m pytest
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-faults audit lint docs bench lock wheel clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  VENV=$(VENV)  PYTHON=$(PYTHON)  KIND=$(KIND) (auto, cpu, gpu)  ARGS='more arguments for pytest, grpo run or the benchmark'"

setup: ## the virtual environment: GPU or CPU, whichever is here; instant when it is up to date
	@$(PYTHON) scripts/setup.py --venv "$(VENV)" --kind $(KIND)

demo: setup ## the whole R1 recipe on a tiny model, into runs/r1-tiny; run it again to resume
	$(VENV)/bin/grpo run r1_tiny --out "$(OUT)" $(ARGS)

test: setup ## the tests of every day
	$(PYTEST) -m "not slow and not gpu and not faults" $(ARGS)

test-slow: setup ## the tests that take minutes
	$(PYTEST) -m "slow and not gpu" $(ARGS)

test-faults: setup ## the tests of every fault, and a table of the results; an hour on two cores
	$(PYTEST) --fault-rows -m "not gpu" $(ARGS)

audit: setup ## known holes in constraints.txt (pip-audit) and secrets in tracked files (detect-secrets); needs the network
	$(VENV)/bin/python scripts/audit.py --uv $(VENV)/bin/uv

lint: setup ## ruff and mypy
	$(VENV)/bin/ruff check
	$(VENV)/bin/mypy

docs: setup ## the documentation as a site, build/docs/index.html; needs no network, and a warning is an error
	$(VENV)/bin/python -m sphinx -W --keep-going -q -d build/doctrees docs build/docs

bench: setup ## the benchmarks, each printing one JSON object as its last line
	@shopt -s nullglob; for script in scripts/bench_*.py; do echo "== $$script"; $(VENV)/bin/python "$$script" --json $(ARGS) || exit 1; done

lock: setup ## resolve constraints.txt anew from pyproject.toml (after changing a dependency)
	$(VENV)/bin/uv pip compile pyproject.toml --extra cpu --extra dev --universal --python-version 3.11 --no-annotate --quiet \
	  --excludes <(printf '%s\n' torch triton torchvision torchaudio torchcodec) --custom-compile-command "make lock" --output-file constraints.txt

wheel: setup ## dist/*.whl
	$(VENV)/bin/python -m hatchling build -t wheel

clean: ## caches and built files; never runs/ or the virtual environment
	rm -rf dist build .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
