# make demo · make test · make check · make docs · make notebooks · make notebooks-test · make bench · make setup
# Every target makes or refreshes .venv first. Another interpreter: PYTHON=python3.12 make test

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup demo test test-slow check docs notebooks notebooks-test bench clean

setup:
	@PYTHON="$(PYTHON)" VENV="$(VENV)" sh .ci/setup

demo: setup
	$(BIN)/python examples/demo.py --out out/demo

test: setup
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-slow: setup
	$(BIN)/python -m pytest -n 2 --dist worksteal -m slow

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(MAKE) docs

# Warnings are errors: a reference or a link that leads nowhere, a public name on no page, a formula that is none.
docs: setup
	$(BIN)/python -m sphinx --quiet --fresh-env --fail-on-warning docs out/docs

notebooks: setup
	$(BIN)/python .ci/notebooks.py

notebooks-test: setup
	$(BIN)/python .ci/notebooks.py --small

bench: setup
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/peers.py --threads 1 --environments $(VENV)-peers

clean:
	rm -rf $(VENV) $(VENV)-peers out dist
