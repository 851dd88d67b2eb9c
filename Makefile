# InferHub: `make serve` and `make test` need make and Python >= 3.11 with venv, nothing else.
# `.ci/run` and hooks call these targets and nothing of their own.

PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
UV := $(VENV)/bin/uv
ARGS ?=
# Each file stays with one process, so that its servers are started once. PARALLEL= runs one after the other.
PARALLEL ?= -n auto --maxprocesses 4 --dist loadfile

# One stamp per step, inside the environment: a second run starts at once and needs no network.
BOOTSTRAPPED := $(VENV)/.bootstrapped
RUNTIME := $(VENV)/.runtime
DEV := $(VENV)/.dev
DIFFUSION := $(VENV)/.diffusion

CODE := src tests $(wildcard benchmarks examples)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help serve weights test test-slow check fmt bench docs conformance proto lock env env-dev env-peers clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

serve: weights  ## install what is missing, fetch the weights, serve (ARGS="--port 9000")
	@exec $(PY) -m inferhub serve $(ARGS)

weights: $(RUNTIME)  ## fetch and verify the weights of the built-in models
	@$(PY) -m inferhub models pull

test: $(DEV) weights  ## run the tests (ARGS="-k name")
	$(PY) -m pytest -m "not slow" $(PARALLEL) $(ARGS)

test-slow: $(DIFFUSION) weights  ## run the tests that take minutes
	$(PY) -m pytest -m slow $(ARGS)

check: $(DEV)  ## format, lint, types, architecture: what CI checks
	$(VENV)/bin/ruff format --check $(CODE)
	$(VENV)/bin/ruff check $(CODE)
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

fmt: $(DEV)  ## format and mend what can be mended
	$(VENV)/bin/ruff format $(CODE)
	$(VENV)/bin/ruff check --fix $(CODE)

bench: $(DEV) weights  ## measure, and compare with the targets (ARGS="overhead")
	$(PY) -m benchmarks $(ARGS)

docs: $(DEV)  ## write the generated reference pages again
	$(PY) -m inferhub.settings.reference docs/reference
	$(PY) -m inferhub.cli._reference docs/reference

conformance: $(DEV) weights  ## ask every vendor's double everything, and write what holds (minutes)
	$(PY) -m inferhub.testing.conformance docs/reference

proto: $(DEV)  ## write the gRPC code again
	$(PY) -m grpc_tools.protoc -I inferhub/transport/_pb=proto/inferhub/worker/v1 \
	  -I inferhub/transport/_pb=proto/inferhub/orchestrator/v1 --python_out=src --pyi_out=src \
	  --grpc_python_out=src inferhub/transport/_pb/worker.proto inferhub/transport/_pb/orchestrator.proto

# Locks pin versions and hashes but no address: any package index serves them.
COMPILE = $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes \
  --no-emit-index-url --no-header --no-annotate $(if $(UPGRADE),--upgrade)

EXTRAS = --extra local --extra postgres --extra redis --extra clickhouse --extra kafka --extra s3

lock: $(BOOTSTRAPPED)  ## pin dependencies again after pyproject.toml changed (UPGRADE=1: newest)
	$(COMPILE) locks/bootstrap.in -o locks/bootstrap.lock
	$(COMPILE) pyproject.toml $(EXTRAS) --extra japanese --extra chinese --group dev -o locks/dev.lock
	$(COMPILE) pyproject.toml $(EXTRAS) --constraint locks/dev.lock -o locks/runtime.lock
	$(COMPILE) locks/instructor.in -o locks/instructor.lock
	$(COMPILE) locks/contenders.in -o locks/contenders.lock
	$(COMPILE) pyproject.toml --extra diffusion --constraint locks/dev.lock --override locks/diffusion.override \
	  -o locks/diffusion.lock

env: $(RUNTIME)  ## only make the environment that `serve` needs
env-dev: $(DEV)  ## only make the environment that `test` and `check` need
env-peers: $(DEV)  ## only make the environment of the servers that `bench` compares with
	@$(PY) -m benchmarks.contenders.environment

clean:  ## delete the environment and what tools left behind; weights and keys stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis dist
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(BOOTSTRAPPED): locks/bootstrap.lock
	@command -v $(PYTHON) >/dev/null || { \
	  echo "There is no '$(PYTHON)' here. On Debian and Ubuntu: apt install python3 python3-venv" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "InferHub needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "Name another one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' has no venv module. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "[1/3] Making the environment $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --disable-pip-version-check --quiet --require-hashes -r $<
	@touch $@

$(RUNTIME): locks/runtime.lock pyproject.toml $(BOOTSTRAPPED)
	@echo "[2/3] Installing InferHub and its engines"
	@$(call install,$<)
	@touch $@

$(DEV): locks/dev.lock $(RUNTIME)
	@echo "[3/3] Installing the tools of developers"
	@$(call install,$<)
	@touch $@

# torch is not in the lock: which build of it is right depends on the machine and on its package index.
TORCH := torch==2.13.0

$(DIFFUSION): locks/diffusion.lock $(DEV)
	@echo "Installing what models of diffusers need"
	@$(PY) -m pip install --disable-pip-version-check --quiet $(TORCH)
	@$(PY) -m pip install --disable-pip-version-check --quiet --no-deps --require-hashes -r $<
	@touch $@

# uv is quick and shows progress. It does not read pip's configuration, so where a mirror is set up
# for pip only, pip does the same work.
define install
$(UV) pip install --python $(PY) --compile-bytecode --require-hashes -r $(1) \
  || { echo "uv did not succeed; trying pip."; $(PY) -m pip install --require-hashes -r $(1); }
$(UV) pip install --python $(PY) --quiet --offline --no-deps --no-build-isolation -e .
endef
