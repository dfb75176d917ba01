# Two commands on a fresh machine: `make run` shows it, `make test` proves it.
# Needed: Python 3.11 or newer, make, git. Everything else goes into .venv.

PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/.complete

# Statement and branch coverage below which `make check` fails, children measured.
COVERAGE_MIN      := 90
COVERAGE_MIN_CORE := 100
CORE := errors models ports lifecycle admission slots outcome reconcile

comma := ,
empty :=
space := $(empty) $(empty)
core_files := $(subst $(space),$(comma),$(foreach m,$(CORE),aitbc_aps_miner/$(m).py))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv run test check fmt bench compose-test crash-test clean

help: ## say what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' \
		$(firstword $(MAKEFILE_LIST))

venv: $(STAMP) ## make the environment in .venv
	@:

# The stamp is touched last, so an interrupted installation is simply done again.
# An environment without a working pip (interrupted, or its Python is gone) is remade.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed: make venv PYTHON=/path/to/python3" >&2; \
		exit 1; }
	@$(PY) -m pip --version >/dev/null 2>&1 \
		|| $(PYTHON) -m venv --clear $(VENV) || { \
		echo "No venv module: install python3-venv, or set PYTHON=" >&2; exit 1; }
	@echo "installing into $(VENV), once (a minute or less)"
	@$(PY) -m pip install -qq --disable-pip-version-check --editable '.[dev]'
	@touch $@

run: venv ## see it work: coordinator, miner and sample jobs (ONCE=1 ends by itself)
	@$(PY) -m aitbc_aps_miner.reference_coordinator.demo $(if $(ONCE),--once)

test: check ## make the environment and check everything

check: venv ## lint, types, layers, tests, coverage
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports
	$(PY) -m coverage erase
	$(PY) -m coverage run -m pytest $(PYTEST_ARGS)
	@# What is killed while it writes leaves a torn file; that is no one's fault.
	$(PY) -W 'ignore:Data file' -m coverage combine --quiet && rm -f .coverage.*
	$(PY) -m coverage report --fail-under=$(COVERAGE_MIN)
	$(PY) -m coverage report --fail-under=$(COVERAGE_MIN_CORE) --include=$(core_files)

fmt: venv ## format the code and repair what ruff can
	$(PY) -m ruff check --fix-only --quiet .
	$(PY) -m ruff format .

bench: venv ## measure, each row beside its target
	$(PY) tests/bench

crash-test: venv ## kill a job, its recovery and the power at every durable step (10 min)
	CRASH_ALL=1 $(PY) -m pytest tests/test_crash_points.py --quiet

compose-test: venv ## run compose.yaml for real (root starts a dockerd of its own)
	.ci/compose-test

clean: ## remove everything that was made
	rm -rf $(VENV) build dist *.egg-info .coverage .coverage.* htmlcov .demo .compose \
		.mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find aitbc_aps_miner tests -name __pycache__ -type d -prune -exec rm -rf {} +
