# `make demo` and `make test` set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help demo test coverage check clean

help:
	@echo "make demo   run every stage on synthetic lesions, into runs/demo"
	@echo "make test   run the static checks and all tests"
	@echo "make check  run the static checks only: ruff, mypy, import-linter"
	@echo "make coverage  run all tests and check the coverage floor"
	@echo "make clean  remove .venv and runs/demo"

demo: $(STAMP)
	$(BIN)/dermedge demo -o runs/demo

test: check
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

# Measuring lines doubles the processor time of the tests, so `make test` does not.
coverage: $(STAMP)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --cov --cov-report term

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --python-version 3.10 -p dermedge_runtime
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) runs/demo

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "dermedge is built and tested with Python 3.11 or newer. Set PYTHON=python3.11, for example."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@
