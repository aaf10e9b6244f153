# Two commands do everything on a fresh machine (Python 3.11+, pip, gcc, make): make demo, make test.
VENV := .venv
PYTHON ?= python3
BIN := $(CURDIR)/$(VENV)/bin
export DS_BUILD_OPS = 0

.PHONY: demo test check unit local environment lock schema reference clean

demo: environment
	$(BIN)/dinoctl run jobs/digits.yaml

test: environment check
	$(BIN)/pytest tests/unit tests/local

# Everything that needs no running: style, types, layers.
check: environment
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: environment
	$(BIN)/pytest tests/unit

local: environment
	$(BIN)/pytest tests/local

environment: $(VENV)/.installed

# Hash-checked from the lock; --no-deps because the lock is complete.
$(VENV)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

# Needs uv (pip install uv). Keeps what is locked unless told: make lock UV_FLAGS=--upgrade
lock:
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --all-extras \
		--quiet $(UV_FLAGS) -o requirements.lock pyproject.toml

schema: environment
	$(BIN)/dinoctl schema > jobs/dinojob.schema.json

reference: environment
	$(BIN)/python -m dinoctl.spec.reference > docs/reference.md

clean:
	rm -rf $(VENV) .dinoctl .pytest_cache .mypy_cache .ruff_cache .hypothesis
