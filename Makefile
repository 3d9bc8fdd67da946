# make run       the demo: trains FARNet on the bundled phantoms, tests it, writes the report (minutes on a CPU)
# make test      the quick tests (about two minutes)
# make test-all  all tests
# make lint      ruff and mypy
# The first call makes .venv. `run` installs requirements.txt into it, the others requirements-dev.txt too.
# Another Python: make run PYTHON=python3.12
PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/pip install --quiet --disable-pip-version-check

.PHONY: run test test-all lint

run: $(VENV)/installed
	$(VENV)/bin/python main.py --preset demo

test: $(VENV)/installed-dev
	$(VENV)/bin/python -m pytest

test-all: $(VENV)/installed-dev
	$(VENV)/bin/python -m pytest -m ""

lint: $(VENV)/installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

$(VENV)/installed: requirements.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -r requirements.txt
	touch $@

$(VENV)/installed-dev: requirements-dev.txt $(VENV)/installed
	$(PIP) -r requirements-dev.txt
	touch $@
