# `make help` lists the targets. Every step is skipped when its output is there and whole; pangu-serve has its own.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
MODEL ?= qwen2.5-coder-0.5b
BACKEND ?= auto
HOST ?= 127.0.0.1
PORT ?= 8000
# The index of another build of torch, such as the CPU builds: the usual index has the one for CUDA, gigabytes.
TORCH_INDEX ?=
export PANGU_HOME ?= $(HOME)/.cache/pangu-coder2
# pip's cache and the hub's stay in our folder too: nothing else outside the checkout is written.
export PIP_CACHE_DIR ?= $(PANGU_HOME)/pip
export HF_HOME ?= $(PANGU_HOME)/huggingface

BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

.PHONY: help serve test lint check-wheel clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

serve: .venv/installed$(if $(filter gptq,$(BACKEND)),-gptq) ## import, convert and serve: MODEL= BACKEND=auto|ctranslate2|transformers|gptq HOST= PORT= TORCH_INDEX=
	$(BIN)/pangu-serve $(MODEL) --format $(BACKEND) --host $(HOST) --port $(PORT)

test: .venv/installed-dev ## everything that proves it works
	$(BIN)/pytest -n 2 --dist loadfile

lint: .venv/installed-dev ## ruff, mypy, import-linter
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

check-wheel: .venv/installed-dev ## build the wheel, install it alone, run each command's --help
	$(BIN)/python tests/check_wheel.py

clean: ## remove the virtual environment and build output (never $PANGU_HOME)
	rm -rf .venv dist build

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(INSTALL) pip

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) --editable '.[convert,serve,serve-torch]'
	touch $@

.venv/installed-gptq: pyproject.toml constraints.txt | .venv/installed
	$(INSTALL) --editable '.[gptq]'
	touch $@

.venv/installed-dev: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) --editable '.[dev]'
	touch $@ .venv/installed .venv/installed-gptq
