# Everything runs in the environment `.venv`, which is made on first use.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$python && break; done)
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest -n auto --dist worksteal
DEMO ?=
NOTEBOOKS ?=

.PHONY: demo results experiments-quick benchmarks docs notebooks test test-all \
	coverage mutation check format package test-versions clean

demo: .venv/experiments
	$(BIN)/python -m experiments run digits --restart --output digits-output $(DEMO)

# Writes all tables, pictures and pages of results again, from the records.
results: .venv/experiments
	$(BIN)/python -m experiments tables

experiments-quick: .venv/experiments
	$(BIN)/python -m experiments quick

# By these, the C library keeps the memory of a call for the next one: docs/how_to.md.
benchmarks: export MALLOC_MMAP_THRESHOLD_ := 1073741824
benchmarks: export MALLOC_TRIM_THRESHOLD_ := 1073741824
benchmarks: .venv/benchmarks
	$(BIN)/python -m benchmarks.taylor
	$(BIN)/python -m benchmarks.jet
	$(BIN)/python -m benchmarks.regularization
	$(BIN)/python -m benchmarks.solver
	$(BIN)/python -m benchmarks.stiff
	$(BIN)/python -m benchmarks.training

docs: .venv/docs
	$(BIN)/python -m mkdocs build --quiet

notebooks: .venv/experiments .venv/notebooks
	$(BIN)/python tools/notebooks.py $(NOTEBOOKS)

# By default what a change needs: every public name, rule, error and page, in minutes.
test: .venv/experiments .venv/notebooks .venv/tests
	$(PYTEST) -m 'not thorough'

test-all: .venv/benchmarks test
	$(PYTEST) -m thorough

coverage: .venv/experiments .venv/notebooks .venv/tests
	$(PYTEST) -m 'not thorough' --cov=diffrax_speedreg --cov-report=term-missing

mutation: .venv/experiments .venv/notebooks .venv/tests
	$(BIN)/python -m tools.mutation

check: .venv/benchmarks .venv/docs .venv/experiments .venv/notebooks .venv/tests .venv/checks
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright
	$(BIN)/python tools/words.py

format: .venv/checks
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

package: .venv/package
	rm -rf dist
	$(BIN)/python tools/test_package.py

test-versions:
	$(PYTHON) tools/test_versions.py

clean:
	rm -rf .venv .venv-lowest .venv-highest dist

# One file for each group of dependencies that is installed.
.venv/%: pyproject.toml | .venv/pip
	$(BIN)/python -m pip install --quiet --editable . --group $*
	@touch $@

# Python 3.11 comes with a version of pip that does not know groups.
.venv/pip: | .venv/bin/python
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	@touch $@

.venv/bin/python:
	@test -n '$(PYTHON)' || { echo 'Python 3.11 or later is needed, and was not found: \
	install it, or name it by make PYTHON=...'; exit 1; }
	$(PYTHON) -m venv .venv
