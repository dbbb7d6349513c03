# Needs Python >= 3.11 with pip, and make. Everything else goes into a virtual environment here.
#
#   make demo     the main job on real input: time, memory and speed-up, side by side
#   make test     the suite; with CI=true in the environment the long tests as well
#   make test-all PYTHONS="3.12 3.13 3.14"   the suite on each of these Pythons
#   make test-lowest, make test-newest       the suite with the lowest, the newest packages
#   make lint     ruff, mypy, pyright, import-linter
#   make docs     the documentation, built into site/
#   make bench    the figures of the documentation, measured on this machine
#   make faults   what happens when a worker dies, a task hangs ..., beside other pools
#   make systems  the library in places that lack something, and the page that tells of them
#   make dist     the packages, checked, and the contract run from the installed wheel
#   make clean    removes what the commands above made
#
# Another Python: `PYTHON=python3.12 make test`. It gets an environment of its own, as test-all's have
# (in .venvs). These are looked for on PATH and among pyenv's; ONLY="tests/contract -k process" selects.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

CHECK := import sys, venv; sys.exit(sys.version_info < (3, 11))
ifdef PYTHON
  VENV ?= .venv-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
else
  PYTHON := $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
      if $$p -c '$(CHECK)' >/dev/null 2>&1; then echo $$p; break; fi; done)
  VENV ?= .venv
endif

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet install

.PHONY: help tools demo test test-all test-lowest test-newest lint docs bench faults systems dist clean

help:
	@sed -n '3,13s/^# *//p' Makefile

# A system Python may come without ensurepip (Debian's does): then its own pip fills the environment.
$(BIN)/python:
	@if [ -z "$(PYTHON)" ] || ! $(PYTHON) -c '$(CHECK)'; then \
	    echo "No Python >= 3.11 found. Name one: PYTHON=/path/to/python3 make ..." >&2; exit 1; fi
	@echo "Making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 \
	    || { $(PYTHON) -m venv --clear --without-pip $(VENV) \
	         && $(PYTHON) -m pip --quiet --python $(BIN)/python install pip; }

# The stamps make a second run start at once; a changed pyproject.toml installs again.
$(VENV)/.demo: pyproject.toml | $(BIN)/python
	@echo "Installing what the demo needs into $(VENV) (a minute or two, once)"
	@$(PIP) --editable '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	@echo "Installing the development tools into $(VENV) (a few minutes, once)"
	@$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/.demo

demo: $(VENV)/.demo
	@$(BIN)/python examples/demo.py

# Where it is not to be had, its tests are skipped: it is tried once, and nothing fails.
$(VENV)/.torch: $(VENV)/.dev
	@.ci/torch $(BIN)/python
	@touch $@

# Compiled first: where PYTHONDONTWRITEBYTECODE is set, each of the many fresh processes would do it.
test: $(VENV)/.dev $(if $(CI),$(VENV)/.torch)
	@$(BIN)/python -m compileall -q src
	@.ci/parts $(BIN)/python 'not $(if $(CI),besides,long)'

PYTHONS ?= 3.12 3.13 3.14
ONLY ?= tests
LOWEST := --constraint tests/constraints-lowest.txt
SUITE = bin/python -m pytest -m "not long" -p no:cacheprovider $(ONLY)

# One after the other, all of them also where one fails.
test-all:
	@failed=; for python in $(PYTHONS); do echo "Python $$python"; \
	    .ci/environment .venvs/$$python $$python && .venvs/$$python/$(SUITE) || failed+=" $$python"; \
	done; [ -z "$$failed" ] || { echo "The tests failed on Python$$failed"; exit 1; }

test-lowest:
	.ci/environment .venvs/lowest 3.11 $(LOWEST)
	.venvs/lowest/$(SUITE)

test-newest:
	.ci/environment .venvs/newest $(PYTHON) --upgrade
	.venvs/newest/$(SUITE)

# The environment alone, for those who run several of these at the same time.
tools: $(VENV)/.dev $(if $(CI),$(VENV)/.torch)

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(VENV)/.dev
	@$(BIN)/python -m compileall -q src benchmarks
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.trace_rows

faults: $(VENV)/.dev
	$(BIN)/python -m benchmarks.faults

# What is installed here is for this alone: no other test needs it.
systems: $(VENV)/.dev
	@$(PIP) pyinstaller eventlet gunicorn uwsgi celery gevent uvloop
	$(BIN)/python tests/systems.py docs/systems-table.md

dist: $(VENV)/.dev
	rm -rf dist
	$(BIN)/python -m build --outdir dist >/dev/null
	$(BIN)/python -m twine check --strict dist/*
	.ci/wheel $(BIN)/python dist

clean:
	rm -rf .venv .venv-* .venvs site build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
