# Two commands: `make demo` and `make test`. Both set up what they need first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# Options of the demo, e.g. make demo DEMO="--users banking77 --seed 2"
DEMO ?=
# Options of pytest, e.g. make test PYTEST="-m 'not loop'"
PYTEST ?=

.PHONY: help setup demo test clean
.DEFAULT_GOAL := help

help: ## Show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST))

setup: ## Install the platform into .venv and vLLM into .venv-vllm
	@$(PYTHON) -m console.environments platform vllm

demo: setup ## Run the whole loop on simulated users and report (about 15 minutes)
	@$(BIN)/headrace demo $(DEMO)

test: setup ## Run everything that CI runs: format, lint, types, import layers, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest $(PYTEST)

clean: ## Remove what make and the demo made
	rm -rf .venv .venv-vllm .headrace .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
