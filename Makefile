# make run    the demo: trains FARNet on the bundled phantoms, tests it, writes the report (minutes on a CPU)
# make test   the tests
# make lint   ruff
# The first call makes .venv and installs requirements.txt into it. Another Python: make run PYTHON=python3.12
PYTHON ?= python3
VENV := .venv

.PHONY: run test lint

run: $(VENV)/installed
	$(VENV)/bin/python main.py --preset demo

test: $(VENV)/installed
	$(VENV)/bin/python -m pytest

lint: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

$(VENV)/installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@
