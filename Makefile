# Every target sets itself up: a virtual environment with the locked versions, then the work.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
export DO_NOT_TRACK := true
export MLFLOW_DISABLE_TELEMETRY := true
export HF_HUB_DISABLE_TELEMETRY := 1
export OMP_NUM_THREADS := 1
export PYTHONWARNINGS ?= ignore

.PHONY: install study test slow lint audit mutate soak bench ui viz

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

.venv/.audit: .venv/.base
	$(BIN)/python -m pip install -q -c requirements.lock -e ".[audit]"
	touch $@

.venv/.viz: .venv/.base
	$(BIN)/python -m pip install -q -c requirements.lock -e ".[viz]"
	touch $@

install: .venv/.test .venv/.viz  ## everything that the other targets need

study: .venv/.base  ## the whole embedded study; QUICK=1: one seed, small
	$(BIN)/kedro study $(if $(QUICK),--quick) $(ARGS)

test: .venv/.test  ## the test suite, a process a core; WORKERS=0: in one
	$(BIN)/python -m pytest -n $(or $(WORKERS),2) $(ARGS)

slow: .venv/.test .venv/.viz  ## the tests that take minutes each and are in no gate: before a release; ARGS=tests/test_readme.py for a part
	$(BIN)/python -m pytest -m slow $(ARGS)

lint: .venv/.test  ## style, types, who may import whom, known vulnerabilities (AUDIT=0: those not looked up)
	$(BIN)/ruff check src tests benchmarks docs
	$(BIN)/mypy
	$(BIN)/lint-imports
	@$(if $(filter 0,$(AUDIT)),echo "known vulnerabilities: not looked up",$(MAKE) --no-print-directory audit)

audit: .venv/.audit  ## known vulnerabilities of the locked versions, by the advisory service of the package index
	@$(BIN)/python .ci/audit.py requirements.lock

mutate: .venv/.mutate  ## mutation tests of the formulas, fails below 90%; ARGS="gemma_alignment.objectives*" for a part
	$(BIN)/mutmut run --max-children $(or $(WORKERS),1) $(ARGS)
	@$(BIN)/mutmut results
	@$(BIN)/mutmut export-cicd-stats > /dev/null
	@$(BIN)/python tests/mutation_score.py

soak: .venv/.test  ## kill a study again and again, resume it, compare; KILLS=50 SEED=1 SOAK_ENV=test ARGS=--seeds=42
	$(BIN)/python tests/soak.py --kills $(or $(KILLS),50) --seed $(or $(SEED),1) --env $(or $(SOAK_ENV),test) $(ARGS)

# An environment of a TRL that sees the packages of .venv: torch is not installed once more.
build/bench/trl-%/.done: benchmarks/requirements.txt benchmarks/requirements-ppo.txt .venv/.base
	$(BIN)/python -m venv $(@D)
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > $(@D)/base.txt
	cp $(@D)/base.txt $$($(@D)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/zz_base.pth
	$(@D)/bin/python -m pip install -q -c requirements.lock -r $(if $(findstring 1.12,$@),benchmarks/requirements-ppo.txt,benchmarks/requirements.txt)
	touch $@

bench: .venv/.base build/bench/trl-1.16/.done build/bench/trl-1.12/.done  ## speed and memory beside TRL; BENCH=peers for a part, ARGS="--only grpo"
	$(BIN)/python benchmarks/run.py $(or $(BENCH),all) $(ARGS)

ui: .venv/.base  ## MLflow on the study's store, and the address that compares the arms; ARGS="--port 5001"
	$(BIN)/kedro study ui $(ARGS)

viz: .venv/.viz  ## Kedro-Viz of every pipeline, ARGS="--port 4142"; BUILD=1: as pages for any web server, in build/
	$(BIN)/kedro viz $(if $(BUILD),build --include-previews,run --host 127.0.0.1) $(ARGS)
