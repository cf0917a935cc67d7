# One command each: a bare machine with Python 3.11, gcc and git is enough. `make` alone lists them.

PYTHON ?= python3
JOBS ?= 2
DATA ?=
BENCHMARKS ?= coverage speed
SHELL := bash
.SHELLFLAGS := -euo pipefail -c

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile -q $(if $(DATA),--data=$(DATA))

.DEFAULT_GOAL := help
.PHONY: help install zoo demo test check format slow bench docs clean

help: ## This list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 18

install: .venv/.installed ## Python environment in .venv (done once)

# PyTorch comes first and pinned, so that nothing installed later can bring in another build of it.
.venv/.installed: pyproject.toml constraints.txt
	@echo "Installing into .venv (once; a few minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(PIP) torch
	@$(PIP) --editable '.[dev]'
	@touch $@

zoo: .venv/.zoo ## What others bring, to try: torchvision, timm, transformers, accelerate, Lightning (done once)

# Without their dependencies: they would ask for a PyTorch of their own.
.venv/.zoo: .venv/.installed
	@echo "Installing what others bring into .venv (once)"
	@$(PIP) --no-deps torchvision timm pytorch-lightning torchmetrics accelerate
	@$(PIP) pillow huggingface-hub psutil --editable '.[bench]'
	@touch $@

demo: .venv/.installed ## Train, cut, prove, fine-tune, export, measure and save a small network
	@$(BIN)/secateurs demo

test: .venv/.installed ## Every test that takes seconds
	@$(PYTEST)

check: .venv/.installed ## Format, lint, types, layers, quick tests: under a minute
	@$(BIN)/ruff format --check --quiet . || { echo "Run 'make format'."; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-logo --cache-dir .cache/imports
	@$(PYTEST) -m 'not slow and not medium and not data'

format: .venv/.installed ## Rewrite the code in the house format
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format --quiet .

slow: .venv/.zoo ## Tests that take minutes, and ten thousand random networks
	@$(PYTEST) -m slow --timeout 0
	@$(BIN)/python -m benchmarks.fuzz

bench: .venv/.zoo ## Published numbers, again, into benchmarks/results
	@for name in $(BENCHMARKS); do echo "== $$name"; $(BIN)/python -m benchmarks.$$name; done

docs: .venv/.installed ## API pages into out/docs
	@$(PIP) --editable '.[docs]'
	@$(BIN)/pdoc --docformat markdown --output-directory out/docs secateurs
	@echo "out/docs/index.html"

clean: ## Remove everything that these commands made
	rm -rf .venv .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache out build dist
	find . -name __pycache__ -prune -exec rm -rf {} +
