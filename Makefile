# `make demo` and `make test` work on a machine with Python 3.11 or newer and nothing else installed.
PYTHON ?= python3
BIN := .venv/bin
# What the tests were run with. Triton is no dependency: a CUDA build of torch brings the one release that it fits.
TORCH := torch==2.13.0
TRITON := triton==3.6.*; platform_system == 'Linux'

# Most of the tests' time goes into interpreted kernels, which take one core each. Every process begins with files of
# its own, whose tests share what they have compiled; one that has finished takes over from the others.
SHARED_OUT := --numprocesses auto --maxprocesses 4 --dist worksteal

# On a machine with a GPU its own python runs, from the source tree: no environment, no network.
ON_GPU := PYTHONPATH=. $(PYTHON)
MINUTES ?= 15

# CUDA C++ compiles without a GPU and with any build of torch.
BUILD = $(if $(shell command -v nvcc),cuda,auto)

.PHONY: help demo test test-slow test-all docs-test sanitize gpu gpu-build gpu-turing gpu-tune lint format wheel clean
help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

# What running needs. torch comes first and alone: what follows finds it installed, and --no-build-isolation keeps a
# second one out. Few of torch's modules are ever imported: Python compiles those when they are.
.venv/installed: pyproject.toml setup.py $(wildcard csrc/* csrc/*/* ditn_kernels/ops/*.py) ditn_kernels/_interface.py
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile $(TORCH)
	$(BIN)/python -m pip install --quiet 'setuptools>=77' wheel
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable .
	touch $@

# What the tests and linters need besides: the package is there already, so that only its extra is installed. The tests
# import torch in many processes, which may not be allowed to keep what Python compiles: that is done here, on all cores.
# (Some of what is installed is meant for newer Pythons and does not compile.)
.venv/developed: .venv/installed
	$(BIN)/python -m pip install --quiet --no-compile "$(TRITON)" 'ditn-kernels[dev]'
	$(BIN)/python -m compileall -qq --workers 0 .venv/lib || true
	touch $@

# Ray is large, and what needs it is too long for the other tests: they skip it.
.venv/with-ray: .venv/developed
	$(BIN)/python -m pip install --quiet --no-compile 'ditn-kernels[ray]'
	touch $@

demo: .venv/installed  ## upscale a photograph and a page and lay them beside bicubic interpolation
	$(BIN)/ditn upscale examples/kitchen.jpg examples/page.png -o demo --format png --overwrite
	$(BIN)/python examples/side_by_side.py demo/side-by-side.png \
		examples/kitchen.jpg DITN=demo/kitchen.png examples/page.png DITN=demo/page.png

test: .venv/developed  ## the tests that are quick
	$(BIN)/python -m pytest $(SHARED_OUT) -m 'not slow'

test-slow: .venv/developed  ## the slow tests, but for the longest
	$(BIN)/python -m pytest $(SHARED_OUT) -m 'slow and not exhaustive'

test-all: .venv/developed .venv/with-ray  ## all tests
	$(BIN)/python -m pytest $(SHARED_OUT)

docs-test: .venv/developed .venv/with-ray  ## every command of docs/deployment.md, docs/video.md and docs/clusters.md (also part of test-all)
	$(BIN)/python -m pytest tests/test_docs.py

sanitize:  ## the C++ kernels under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer
	csrc/sanitize.sh

gpu:  ## on a GPU, with its own python: all that is to be asked of it, in a quarter of an hour; STAGES="networks training" takes some, MINUTES=9 less time
	@$(ON_GPU) -c 'import torch, triton, pytest' || { echo 'PYTHON=$(PYTHON) lacks what is missing above: make gpu PYTHON=...' >&2; exit 1; }
	$(ON_GPU) -m benchmarks.gpu_session --minutes $(MINUTES) --stages $(STAGES)

gpu-build:  ## on a GPU: the compiled libraries, into the source tree; CUDA C++ if nvcc is there
	DITN_BUILD=$(BUILD) $(ON_GPU) setup.py --quiet build_ext --inplace

gpu-turing:  ## on a GPU: CUDA C++ as code for Turing, compiled for this GPU when it is loaded: tested, and timed against eager
	DITN_CUDA_ARCHS=7.5+PTX $(MAKE) gpu-build
	$(ON_GPU) -m pytest tests/kernels/test_ops.py -k test_backends_forward
	$(ON_GPU) -m benchmarks.gpu --only-cuda --sizes 960x540

gpu-tune:  ## on a GPU: measure the network's launch configurations and write them into ditn_kernels/backends/triton/configs
	$(ON_GPU) -m benchmarks.tools.tune --shapes network --dtypes float16 --minutes 8 \
		--ops inner_patch_stage gated_ffn dilated_gate image_tail inner_patch_attention image_head

lint: .venv/developed  ## formatting, ruff, mypy
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m benchmarks.report --check

format: .venv/developed  ## rewrite the code as `make lint` wants it, and README's tables from the results
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/python -m benchmarks.report

wheel: .venv/developed  ## wheel and sdist in dist/, with CUDA C++ for every chip if nvcc is there
	DITN_BUILD=$(BUILD) $(BIN)/python -m build --no-isolation

clean:  ## remove what the other targets made
	rm -rf .venv build dist demo *.egg-info
