# Needs Python 3.11 and make, nothing else. `make demo` shows everything; `make test check` is what must stay green.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
# One process trains with the whole family of servers, the other does all the rest: tests/conftest.py.
PARALLEL := -n 2 --no-loadscope-reorder
STAMP := $(VENV)/.installed

.PHONY: demo test check bench docs venv clean

demo: $(STAMP)
	$(BIN)/training-fsm demo

test: $(STAMP)
	$(BIN)/python -m pytest $(PARALLEL) $(TESTS)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	for benchmark in $(basename $(notdir $(wildcard benchmarks/[a-z]*.py))); do \
		$(BIN)/python -m benchmarks.$$benchmark || exit 1; done

docs: $(STAMP)
	$(BIN)/python docs/generate.py
	$(BIN)/training-fsm contracts export docs/contracts

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'needs Python 3.11: make PYTHON=/path/to/python3.11')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .demo build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
