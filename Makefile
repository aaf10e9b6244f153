# Two commands do everything on a fresh machine (Python 3.11+, pip, gcc, make): make demo, make test.
# The tests on Kubernetes need more, and say so where it is not there: make kube-tools builds what can be built.
VENV := .venv
PYTHON ?= python3
BIN := $(CURDIR)/$(VENV)/bin
export DS_BUILD_OPS = 0

BENCH := .venv-benchmark

.PHONY: benchmark benchmark-pipeline benchmark-streaming benchmark-operator demo test check unit local kube cluster cluster-shell kube-tools test-image environment golden lock schema reference clean

demo: environment
	$(BIN)/dinoctl run jobs/digits.yaml

# Two at a time: they wait for a good part of it. Kubernetes in the second half: where it is required, its programs are
# built beside the first (.ci/run), since the others start many programs, each with a time-out of its own.
test: environment
	$(MAKE) --jobs=2 --output-sync=line check unit
	$(MAKE) --jobs=2 --output-sync=line local-first others

# Of tests/local, what is run after those on Kubernetes, so that both halves last about as long.
REST := $(wildcard tests/local/test_re*.py tests/local/test_s*.py tests/local/test_t*.py) tests/local/tracking

.PHONY: local-first local-rest others
local-first: environment
	$(BIN)/pytest tests/local $(addprefix --ignore=,$(REST))

local-rest: environment
	$(BIN)/pytest $(REST)

others: environment
	$(MAKE) kube
	$(MAKE) cluster
	$(MAKE) local-rest

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

# A real API server and etcd; no root. Skipped, with the reason in pytest's summary, where the programs are not built, since
# building them takes a quarter of an hour; with DINOCTL_REQUIRE_CLUSTER=1 they are built first, and nothing is skipped.
REQUIRED := $(if $(filter 1,$(DINOCTL_REQUIRE_CLUSTER)),kube-tools)

kube: environment $(REQUIRED)
	$(BIN)/pytest tests/kube

# A real node that runs pods, with KubeRay and Kueue: needs root, and of Debian's packages containerd, runc,
# containernetworking-plugins, iptables, conntrack, iproute2 and openssl.
cluster: environment $(REQUIRED) $(if $(REQUIRED),test-image)
	$(BIN)/pytest tests/cluster

# A shell with KUBECONFIG set, for as long as the cluster lives.
cluster-shell: environment kube-tools test-image
	PYTHONPATH=platform:tests $(BIN)/python -m support.kube.cluster

# Needs Go 1.26. Cached by version in $XDG_CACHE_HOME/dinoctl-kube (1 GB); nothing but Python's own library is
# used, so that it can run before the environment is there.
kube-tools:
	PYTHONPATH=tests $(PYTHON) -m support.kube.build

# What image/install.sh makes, for the pods of the test cluster; as root. Cached in $XDG_CACHE_HOME/dinoctl-image (7 GB):
# minutes after a change of the lock, seconds after one of the code. After the environment, for what pip has kept of it.
test-image: environment
	PYTHONPATH=tests $(PYTHON) -m support.kube.layers

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
.PHONY: golden manifests
golden: environment
	PYTHONPATH=platform:tests $(BIN)/python -m support.rendering

# Needs the Helm of the tests (make kube-tools).
manifests: environment
	PYTHONPATH=platform:tests $(BIN)/python -m support.chart

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

# Ten thousand jobs on a real API server.
benchmark-operator: environment
	$(BIN)/python tests/benchmarks/cluster_scale.py

$(BENCH)/.installed: tests/benchmarks/requirements.txt $(VENV)/.installed
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -c "import site; print(site.getsitepackages()[0])" > $(BENCH)/site
	$(BIN)/python -c "import site; print(site.getsitepackages()[0])" > "$$(cat $(BENCH)/site)/project.pth"
	$(BENCH)/bin/pip install --quiet --disable-pip-version-check --no-deps -r $<
	touch $@

clean:
	rm -rf $(VENV) $(BENCH) .dinoctl .pytest_cache .mypy_cache .ruff_cache .hypothesis
