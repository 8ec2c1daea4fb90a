# Each target brings up .venv by itself from a bare python3 (3.11 to 3.13; choose one by PYTHON=python3.12).
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
EXTRAS ?= dev
comma  := ,
PEERS  := .venv-peers
STAMP  := $(VENV)/installed-$(subst $(comma),-,$(EXTRAS))
UV     := UV_PYTHON_DOWNLOADS=never $(BIN)/uv
PYTEST ?=

.PHONY: help install demo test lint bench lock clean
help:     ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## the pinned environment in .venv (EXTRAS=dev,cuda,... chooses the extras)

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(UV) pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@

demo: $(STAMP)  ## minutes on two cores: demonstrations, training, evaluation and a figure, in runs/demo
	$(BIN)/python -m experiments.demo

test: $(STAMP)  ## the whole suite on all cores, without the long learning runs (PYTEST='-m slow' for those)
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile $(PYTEST)

lint: $(STAMP)  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(STAMP) $(PEERS)/installed  ## speed and memory beside what a user would pick instead
	$(BIN)/python -m benchmarks updates --peers
	$(BIN)/python -m benchmarks rollout --peers
	$(BIN)/python -m benchmarks online --peers
	$(BIN)/python -m benchmarks chains --peers
	$(BIN)/python -m benchmarks neighbors --peers
	$(BIN)/python -m benchmarks offline --peers
	$(BIN)/python -m benchmarks goals

# by pip, whose settings may know where the CPU build of torch is
$(PEERS)/installed: benchmarks/peers.txt
	$(PYTHON) -m venv --clear $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r benchmarks/peers.txt
	@touch $@

lock: $(STAMP)  ## refresh constraints.txt from pyproject.toml
	$(UV) pip compile --quiet --upgrade --universal --all-extras --no-header --no-annotate \
	    --no-emit-index-url --no-emit-find-links pyproject.toml -o constraints.txt

clean:    ## remove the environment
	rm -rf $(VENV)
