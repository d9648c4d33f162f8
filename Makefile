# Everything sets itself up: `make demo` needs Python 3.11 or newer and nothing else; `make test` is what CI runs.
#
# A machine without a GPU can save gigabytes by pointing pip at PyTorch's CPU builds (PIP_EXTRA_INDEX_URL) before
# the first `make`: pip prefers `2.13.0+cpu` to the pinned `2.13.0`, as it is the same version with a label.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; exit; }; done; echo python3)
VENV := .venv
BIN := $(VENV)/bin
RUN_STAMP := $(VENV)/.run
DEV_STAMP := $(VENV)/.dev
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
PYTEST_ARGS ?=
SECONDS ?= 3600
SEED ?=
POINTS ?= 50

.DEFAULT_GOAL := help
.PHONY: help setup demo test check format pytest compose-test chaos soak kill-points bench secrets constraints clean

help:
	@echo "make demo           install into .venv, then start everything with a training run to look at"
	@echo "make setup          install into .venv, with what the tests need"
	@echo "make test           all checks and tests, as CI runs them"
	@echo "make check          format, lint, types and import rules only"
	@echo "make compose-test   build the images and try the deployment (needs Docker with Compose v2)"
	@echo "make chaos          every fault that runs here, with a table of what it cost"
	@echo "make soak           faults at chance moments for SECONDS (3600) over four slots and fifty jobs"
	@echo "make kill-points    kill three trainings at POINTS (50) chance moments each and compare how they end"
	@echo "make bench          measure"
	@echo "make secrets        passwords and Redis users for docker compose, in deploy/secrets"
	@echo "make clean          remove .venv, caches and builds"

setup: $(DEV_STAMP)

demo: $(RUN_STAMP)
	$(BIN)/trackside demo

test: check pytest

check: $(DEV_STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(DEV_STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

pytest: $(DEV_STAMP)
	$(BIN)/pytest -m "not compose and not chaos" $(PYTEST_ARGS)

compose-test: $(DEV_STAMP)
	$(BIN)/pytest -m compose tests/compose $(PYTEST_ARGS)

chaos: $(DEV_STAMP)
	@mkdir -p build
	TRACKSIDE_CHAOS_JSON=build/chaos.json TRACKSIDE_KILL_ROUNDS=200 $(BIN)/pytest tests/chaos $$(PYTHONPATH=tests $(BIN)/python -m chaos.faults) $(PYTEST_ARGS)

soak: $(DEV_STAMP)
	@mkdir -p build
	PYTHONPATH=tests $(BIN)/python -m chaos.soak --seconds $(SECONDS) $(if $(SEED),--seed $(SEED)) --json build/soak.json

kill-points: $(DEV_STAMP)
	@mkdir -p build
	PYTHONPATH=tests $(BIN)/python -m kill_points --points $(POINTS) --json build/kill-points.json

bench: $(DEV_STAMP)
	set -e; for part in bench/[!_]*.py; do echo "== $$part"; PYTHONPATH=tests $(BIN)/python "$$part"; done

secrets:
	$(PYTHON) deploy/make_secrets.py deploy/secrets

constraints: $(DEV_STAMP)
	@{ head -1 constraints.txt; $(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//'; } > constraints.new
	@mv constraints.new constraints.txt

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "Trackside needs Python 3.11 or newer, and $(PYTHON) is not: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { \
		echo "$(PYTHON) has no venv module: on Debian and Ubuntu, apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(RUN_STAMP): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e ".[all]"
	@touch $@

$(DEV_STAMP): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e ".[dev]"
	@touch $@ $(RUN_STAMP)

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
