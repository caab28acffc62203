# Every target sets itself up: a virtual environment with the locked versions, then the work.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
export DO_NOT_TRACK := true
export MLFLOW_DISABLE_TELEMETRY := true
export HF_HUB_DISABLE_TELEMETRY := 1
export OMP_NUM_THREADS := 1
export PYTHONWARNINGS ?= ignore

.PHONY: install study test lint ui viz clean-study

.venv/.base: pyproject.toml requirements.lock
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c requirements.lock torch==2.13.0
	$(BIN)/python -m pip install -q -c requirements.lock -e .
	touch $@

.venv/.test: .venv/.base
	$(BIN)/python -m pip install -q -c requirements.lock -e ".[test]"
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

ui: .venv/.base  ## MLflow on the study's store
	@echo "Open http://127.0.0.1:5000/#/experiments and filter:  tags.method != 'none'   (columns: method, seed, eval/score_mean, eval/gold_mean)"
	$(BIN)/mlflow ui --backend-store-uri $${MLFLOW_TRACKING_URI:-sqlite:///mlflow.db} --host 127.0.0.1 --port 5000

viz: .venv/.viz  ## Kedro-Viz of every pipeline
	$(BIN)/kedro viz run --host 127.0.0.1
