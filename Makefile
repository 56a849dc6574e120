# Everything runs in .venv, which the first target that needs it makes. PYTHON is what it is made with.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help train test test-fast checks bench soak clean

help:            ## this list
	@sed -n 's/^\([a-z-]*\):.*## /make \1	/p' $(MAKEFILE_LIST) | expand -t 16

train: .venv/main.stamp  ## from a fresh clone to a trained, evaluated model with its report
	$(BIN)/python scripts/train.py

test: .venv/dev.stamp    ## the whole test suite
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-fast: .venv/dev.stamp  ## its quick part, for the inner loop: below two minutes
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

checks: .venv/dev.stamp  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/dev.stamp   ## the figures of docs/, measured here
	$(BIN)/python benchmarks/loss.py
	$(BIN)/python benchmarks/loss_stability.py
	$(BIN)/python benchmarks/loss_precision.py
	$(BIN)/python benchmarks/interval_coverage.py
	$(BIN)/python benchmarks/comparison_errors.py
	$(BIN)/python benchmarks/cross_validation_coverage.py
	$(BIN)/python benchmarks/optimizer_step.py
	$(BIN)/python benchmarks/tokenize_throughput.py

soak: .venv/dev.stamp    ## a run killed 100 times at random must end as one left alone
	$(BIN)/python tests/faults/soak.py --kills 100

clean:           ## remove the environment and what tools cached
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "nanolm needs Python 3.11 or newer; run: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv .venv

.venv/main.stamp: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

.venv/dev.stamp: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ .venv/main.stamp
