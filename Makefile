# make quickstart   the three stages on real data, on this machine, in about a quarter of an hour
# make test         everything that CI runs
# Each does all its set-up on a machine that has only Python 3.11 or 3.12, git and make.

# The first that runs and is 3.11 or 3.12 (a name on PATH may be a version manager's empty promise).
PYTHON ?= $(shell for p in python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null \
	&& echo $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SEED ?= 0
# One thread a process: the demo and the tests start two processes on what may be two cores.
export OMP_NUM_THREADS ?= 1
export DS_ACCELERATOR ?= cpu
export WANDB_SILENT ?= true
export TOKENIZERS_PARALLELISM ?= false
export HF_HUB_OFFLINE ?= 1

.PHONY: install quickstart test test-slow lint format typecheck clean

$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or 3.12 found; set PYTHON=/path/to/python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt --upgrade pip setuptools wheel
	$(BIN)/python -m pip install -q -c constraints.txt torch numpy ninja packaging psutil py-cpuinfo
	DS_BUILD_OPS=0 $(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation deepspeed
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e '.[demo,dev]'
	touch $@

install: $(INSTALLED)

quickstart: $(INSTALLED)
	$(BIN)/python launch/quickstart.py --seed $(SEED)

test: lint typecheck
	$(BIN)/python -m pytest -m 'not slow and not gpu' -n 2 --dist loadgroup

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

typecheck: $(INSTALLED)
	$(BIN)/pyright --pythonpath $(BIN)/python

clean:
	rm -rf runs data outputs multirun
