# `make demo` and `make test` work on a machine with Python 3.11 or newer and nothing else installed.
PYTHON ?= python3
BIN := .venv/bin
# What the tests were run with. Triton is no dependency: a CUDA build of torch brings the one release that it fits.
TORCH := torch==2.13.0
TRITON := triton==3.6.*; platform_system == 'Linux'

.PHONY: help demo test test-all sanitize lint format wheel clean
help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

# torch comes first and alone: what follows finds it installed, and --no-build-isolation keeps a second one out.
.venv/installed: pyproject.toml setup.py $(wildcard csrc/* csrc/*/*)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet 'setuptools>=77' wheel "$(TRITON)"
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable '.[dev]'
	touch $@

demo: .venv/installed  ## upscale the example picture and lay it beside bicubic interpolation
	$(BIN)/ditn upscale examples/spiral.png -o demo/spiral-x4.png --overwrite
	$(BIN)/python examples/side_by_side.py examples/spiral.png demo/spiral-x4.png demo/side-by-side.png

test: .venv/installed  ## the tests that are quick
	$(BIN)/python -m pytest -m 'not slow'

test-all: .venv/installed  ## all tests
	$(BIN)/python -m pytest

sanitize:  ## the C++ kernels under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer
	csrc/sanitize.sh

lint: .venv/installed  ## formatting, ruff, mypy
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m benchmarks.report --check

format: .venv/installed  ## rewrite the code as `make lint` wants it, and README's tables from the results
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/python -m benchmarks.report

wheel: .venv/installed  ## wheel and sdist in dist/
	$(BIN)/python -m build --no-isolation

clean:  ## remove what the other targets made
	rm -rf .venv build dist demo *.egg-info
