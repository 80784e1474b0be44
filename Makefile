# Everything is installed into .venv, with the exact versions of constraints.txt. `make help` lists the commands.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
RECIPE ?= fashion-clif
BENCH_DATA = $(if $(DATA),--data "$(DATA)")

# Where the data sets are, unless it is set in the environment.
export SPIKETRAIN_DATA ?= data

# On Linux, PyPI's torch is the CUDA build (about 3 GB with its libraries); this index has the CPU build of the same
# version. Where it cannot be reached, pip goes on with PyPI after half a minute at most. Who sets PIP_FIND_LINKS or
# PIP_NO_INDEX has wheels at hand, and it is left out.
#   make clean setup TORCH_INDEX=https://download.pytorch.org/whl/cu130     for an NVIDIA GPU
#   make clean setup TORCH_INDEX=                                           PyPI only
TORCH_INDEX ?= $(if $(PIP_FIND_LINKS)$(PIP_NO_INDEX),,https://download.pytorch.org/whl/cpu)
FROM_TORCH_INDEX = $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX) --retries 1 --timeout 15)

PIP := $(BIN)/python -m pip --disable-pip-version-check

# One stamp for each set of packages that .venv holds; a change in one of these files makes all of them stale.
SERVE_READY := $(VENV)/.ready-serve
TRAIN_READY := $(VENV)/.ready-train
TEST_READY  := $(VENV)/.ready-test
BENCH_READY := $(VENV)/.ready-bench
VERSIONS    := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.PHONY: help setup serve train test test-containers check docs format bench proto clean

help: ## list these commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

setup: $(SERVE_READY) ## install the server into .venv (the others do this by themselves)
	@echo 'ready: make serve, or $(BIN)/spikeserve --help'

serve: $(SERVE_READY) ## serve the bundled models: REST on port 8000, gRPC on 8001; flags: ARGS="..."
	$(BIN)/spikeserve serve $(ARGS)

train: $(TRAIN_READY) ## train a recipe: RECIPE=fashion-clif, flags: ARGS="--set training.epochs=3"
	$(BIN)/spiketrain train $(RECIPE) $(ARGS)

test: $(TEST_READY) ## run the tests; flags: ARGS="-k neurons"
	$(BIN)/pytest $(ARGS)

test-containers: $(TEST_READY) ## images, replicas and pods, with real engines (root, some minutes)
	SPIKESERVE_TEST_CONTAINERS=all $(BIN)/pytest tests/containers -rs $(ARGS)

fuzz: $(TEST_READY) ## send a server and its decoders 105,000 bad inputs; flags: ARGS="--only rest"
	$(BIN)/python tests/fuzz $(ARGS)

check: $(TEST_READY) ## format, lint, types and documentation, as CI does
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mkdocs build --strict --site-dir build/site

docs: $(TEST_READY) ## build the documentation into site/
	$(BIN)/mkdocs build --strict

format: $(TEST_READY) ## put the code into the form that `make check` asks for
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(BENCH_READY) ## measure the server against its peers: MODEL=FILE DATA=FOLDER, flags: ARGS="--rounds 1"
	$(BIN)/python benchmarks/server.py $(if $(MODEL),--model "$(MODEL)") $(BENCH_DATA) $(ARGS)
	$(BIN)/python benchmarks/server.py --model service/spikeserve/models/fashion-clif.safetensors \
	  --name server-bundled $(BENCH_DATA) $(ARGS)
	$(BIN)/python benchmarks/streams.py
	$(BIN)/python benchmarks/fairness.py $(BENCH_DATA)
	$(if $(MODEL),$(BIN)/python benchmarks/fairness.py --model "$(MODEL)" --name fairness-resnet $(BENCH_DATA))
	$(BIN)/python benchmarks/soak.py $(BENCH_DATA)
	$(if $(MODEL),$(BIN)/python benchmarks/soak.py --model "$(MODEL)" --requests 0 --name soak-resnet $(BENCH_DATA))
	$(BIN)/python benchmarks/report.py

proto: $(TEST_READY) ## write the Python code of proto/*.proto anew
	$(BIN)/python proto/generate.py

clean: ## remove .venv and all caches; trained models under runs/ stay
	rm -rf $(VENV) dist build site .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(SERVE_READY): $(VERSIONS)
	@$(call install,.)
	@touch $(SERVE_READY)

$(TRAIN_READY): $(VERSIONS)
	@$(call install,.[train])
	@touch $(SERVE_READY) $(TRAIN_READY)

$(TEST_READY): $(VERSIONS)
	@$(call install,.[test])
	@touch $(SERVE_READY) $(TRAIN_READY) $(TEST_READY)

$(BENCH_READY): $(VERSIONS)
	@$(call install,.[bench])
	@touch $(SERVE_READY) $(BENCH_READY)

# torch goes first and alone, so that its index is asked for nothing else. pip compiles on one core, which is half of the
# time; compileall uses all of them (and fails over templates that only look like Python).
define install
set -e; \
"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
  echo 'spikeserve needs Python 3.11 or newer, but "$(PYTHON)" is' \
    "$$("$(PYTHON)" --version 2>&1 || true); name another one: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 1; }; \
$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
  rm -rf $(VENV); \
  "$(PYTHON)" -m venv $(VENV) || { echo 'no virtual environment could be made in $(VENV); Debian and Ubuntu' \
    'need the package python3-venv for it' >&2; rm -rf $(VENV); exit 1; }; }; \
echo 'installing spikeserve ($(1)) into $(VENV); the first time this takes a minute or two'; \
$(PIP) install --no-compile --no-deps $(FROM_TORCH_INDEX) -c constraints.txt torch; \
$(PIP) install --no-compile -q -c constraints.txt -e '$(1)'; \
$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
endef
