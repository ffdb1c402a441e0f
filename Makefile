# Everything runs in .venv, made on first use from whatever python3 is there (3.10 to 3.14).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help install demo test check lint types docs format bench clean

help: ## List the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# The stamp is remade when the dependencies or the compiled kernel change.
$(VENV)/installed: pyproject.toml src/build_kernel.py $(wildcard src/raremix/*/*.[ch])
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@echo "installing raremix, torch, the tools and what people train with: some minutes, about 7 GB with CUDA"
	$(BIN)/python -m pip install --quiet --editable ".[test,docs,frameworks]"
	touch $@

install: $(VENV)/installed ## Make the environment

demo: $(VENV)/installed ## Train on long-tailed digits and write demo/report.html
	$(BIN)/python examples/demo.py --out demo

test: $(VENV)/installed ## Run the tests
	$(BIN)/python -m pytest

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed
	$(BIN)/mypy

docs: $(VENV)/installed ## Build the documents into docs/_build/html
	$(BIN)/python -m sphinx -W -q -b html docs docs/_build/html

check: format lint types test docs ## Format, lint, type, test and build the documents

format: $(VENV)/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/installed ## Measure speed against the peers; takes half an hour
	$(BIN)/python -m pip install --quiet --editable ".[bench]"
	$(BIN)/python tests/benchmarks/bench_neighbors.py
	$(BIN)/python tests/benchmarks/bench_mixing.py
	$(BIN)/python tests/benchmarks/bench_memory.py
	$(BIN)/python tests/benchmarks/bench_views.py

clean: ## Remove what was built, and the environment
	rm -rf $(VENV) demo build dist docs/_build
