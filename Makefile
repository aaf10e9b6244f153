# Two commands do everything on a fresh machine (Python 3.11+, pip, gcc, make): make demo, make test.
VENV := .venv
PYTHON ?= python3
BIN := $(CURDIR)/$(VENV)/bin
export DS_BUILD_OPS = 0

BENCH := .venv-benchmark

.PHONY: benchmark benchmark-pipeline benchmark-streaming demo test check unit local environment golden lock schema reference clean

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
	$(BIN)/dinoctl schema --crd > manifests/crd.yaml

# What the operator would make of jobs/, for tests to compare with.
golden: environment
	PYTHONPATH=platform:tests $(BIN)/python -m support.rendering

reference: environment
	$(BIN)/python -m dinoctl.spec.reference > docs/reference.md

# Beside lightly-train, in an environment of its own that sees the packages of this one.
benchmark: $(BENCH)/.installed
	$(BENCH)/bin/python tests/benchmarks/step.py --config tiny --steps 20 --profile
	$(BENCH)/bin/python tests/benchmarks/step.py --config small --profile

# Images a second and core of decoding and augmentation, by stage, beside torchvision.
benchmark-pipeline: environment
	$(BIN)/python tests/benchmarks/pipeline.py

# Beside other streaming libraries, in the same environment; needs Go and taskset.
benchmark-streaming: $(BENCH)/.installed
	$(BENCH)/bin/pip install --quiet --disable-pip-version-check --no-deps -r tests/benchmarks/requirements-streaming.txt
	PYTHONPATH=platform $(BENCH)/bin/python tests/benchmarks/streaming.py

$(BENCH)/.installed: tests/benchmarks/requirements.txt $(VENV)/.installed
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -c "import site; print(site.getsitepackages()[0])" > $(BENCH)/site
	$(BIN)/python -c "import site; print(site.getsitepackages()[0])" > "$$(cat $(BENCH)/site)/project.pth"
	$(BENCH)/bin/pip install --quiet --disable-pip-version-check --no-deps -r $<
	touch $@

clean:
	rm -rf $(VENV) $(BENCH) .dinoctl .pytest_cache .mypy_cache .ruff_cache .hypothesis
