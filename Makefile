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

.PHONY: demo test test-long test-hub lint types

demo: $(DEMO_READY)
	$(RUN) examples/quickstart.py

# Two at once, whatever the machine: each loads TensorFlow, and engines are built in threads of their own. The tests of
# a file share what they build, so they stay together.
PYTEST := $(RUN) -m pytest --numprocesses 2 --dist loadfile

test: lint types
	$(PYTEST) -m "not gpu and not long"

test-long: $(TEST_READY)
	$(PYTEST) -m "long and not gpu"

# KerasHub brings packages of its own, so its models have an environment of their own.
test-hub: .venv-hub/.hub
	.venv-hub/bin/python -m pytest tests/conformance -k keras_hub

lint: $(TEST_READY)
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check

types: $(TEST_READY)
	$(RUN) -m mypy

.venv-hub/.hub: pyproject.toml
	test -x .venv-hub/bin/python || $(SETUP_PYTHON) -m venv .venv-hub
	.venv-hub/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test,hub]'
	touch $@

# The stamp is the newest part of its environment, so a change of pyproject.toml installs again.
.venv/.demo .venv/.test: .venv/.%: pyproject.toml
	test -x .venv/bin/python || $(SETUP_PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	touch $@
