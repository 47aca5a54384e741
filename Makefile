# make demo · make test · make check · make bench · make setup
# Every target makes or refreshes .venv first. Another interpreter: PYTHON=python3.12 make test

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup demo test test-slow check bench clean

setup:
	@PYTHON="$(PYTHON)" VENV="$(VENV)" sh .ci/setup

demo: setup
	$(BIN)/python examples/demo.py --out out/demo

test: setup
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-slow: setup
	$(BIN)/python -m pytest -n 2 -m slow

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

bench: setup
	$(BIN)/python benchmarks/step.py --make-devinterp-environment $(VENV)-devinterp

clean:
	rm -rf $(VENV) $(VENV)-devinterp out dist
