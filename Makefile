# Every target sets itself up: a virtual environment with the locked versions, then the work.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
export DO_NOT_TRACK := true
export MLFLOW_DISABLE_TELEMETRY := true
export HF_HUB_DISABLE_TELEMETRY := 1
export OMP_NUM_THREADS := 1
export PYTHONWARNINGS ?= ignore

.PHONY: install study test lint mutate ui viz

.venv/.base: pyproject.toml requirements.lock
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c requirements.lock torch==2.13.0
	$(BIN)/python -m pip install -q -c requirements.lock -e .
	touch $@

.venv/.test: .venv/.base
	$(BIN)/python -m pip install -q -c requirements.lock -e ".[test]"
	touch $@

.venv/.mutate: .venv/.test
	$(BIN)/python -m pip install -q -c requirements.lock -e ".[test,mutate]"
	touch $@

.venv/.viz: .venv/.base
	$(BIN)/python -m pip install -q -c requirements.lock -e ".[viz]"
	touch $@

install: .venv/.test .venv/.viz  ## everything that the other targets need

study: .venv/.base  ## the whole embedded study; QUICK=1: one seed, small
	$(BIN)/kedro study $(if $(QUICK),--quick) $(ARGS)

test: .venv/.test  ## the test suite
	$(BIN)/python -m pytest $(ARGS)

lint: .venv/.test  ## style, types, and who may import whom
	$(BIN)/ruff check src tests
	$(BIN)/mypy
	$(BIN)/lint-imports

mutate: .venv/.mutate  ## mutation tests of the formulas; ARGS="gemma_alignment.objectives*" for a part
	$(BIN)/mutmut run --max-children $(or $(WORKERS),1) $(ARGS)
	@$(BIN)/mutmut results

ui: .venv/.base  ## MLflow on the study's store, and the address that compares the arms
	$(BIN)/kedro study ui

viz: .venv/.viz  ## Kedro-Viz of every pipeline
	$(BIN)/kedro viz run --host 127.0.0.1
