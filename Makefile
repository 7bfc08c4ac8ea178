# `make demo` and `make test` are all that a fresh machine needs: both create the environment if it is not there.

PYTHON ?= python3
VENV ?= .venv
DATA ?= ../shared/data
BIN := $(VENV)/bin
# One thread a process: with a process a core, more threads only wait for each other.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help demo test lint types proto bench clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.11"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[text,dev]"
	@touch $@

demo: $(VENV)/.ready ## Merge two digit classifiers of different widths and compare (two minutes, after the installation)
	$(BIN)/fxmerge demo

test: $(VENV)/.ready ## Run the tests
	$(ONE_THREAD) $(BIN)/python -m pytest -n logical --maxprocesses 8 $(PYTEST_ARGS)

lint: $(VENV)/.ready ## Check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.ready ## Check types
	$(BIN)/mypy

proto: $(VENV)/.ready ## Compile the protocol that `fxmerge serve` speaks over gRPC
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --grpc_python_out=. fxmerge/serving/v2.proto

bench: $(VENV)/.ready ## Run every benchmark on the data in DATA (hours on 2 cores the first time)
	for what in digits mlp vit text; do $(ONE_THREAD) $(BIN)/python -m benchmarks.bench_$$what --data $(DATA) || exit 1; done

clean: ## Remove the environment and caches
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache *.egg-info
