# `make demo` and `make test` set up .venv by themselves when it is missing.
# `make demo PYTHON=/path/to/python` uses that interpreter and installs nothing.

SETUP_PYTHON ?= python3
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))
export TF_CPP_MIN_LOG_LEVEL ?= 3

ifdef PYTHON
RUN := $(PYTHON)
DEMO_READY :=
TEST_READY :=
else
RUN := .venv/bin/python
DEMO_READY := .venv/.demo
TEST_READY := .venv/.test
endif

.PHONY: demo test test-long lint types

demo: $(DEMO_READY)
	$(RUN) examples/quickstart.py

test: lint types
	$(RUN) -m pytest -m "not gpu and not long"

test-long: $(TEST_READY)
	$(RUN) -m pytest -m "long and not gpu"

lint: $(TEST_READY)
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check

types: $(TEST_READY)
	$(RUN) -m mypy

# The stamp is the newest part of its environment, so a change of pyproject.toml installs again.
.venv/.demo .venv/.test: .venv/.%: pyproject.toml
	test -x .venv/bin/python || $(SETUP_PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	touch $@
