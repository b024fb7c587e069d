# `make demo` and `make test` are all that a fresh machine needs: python3 >= 3.11 and a package registry.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-slow coverage lint generate benchmarks clean

demo: $(READY)
	rm -rf inat-ft-demo
	$(BIN)/inat-ft demo

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -q -m "not slow"

# Several processes, killed processes, every network and strategy: what takes minutes.
test-slow: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -q -m slow

# The fast tests measure at least this share of the lines.
coverage: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -q -m "not slow" --cov --cov-report=term:skip-covered --cov-fail-under=85

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict inat_ft
	$(BIN)/lint-imports

# The flags of `train`, the list of all options and docs/cli.md, from the code.
generate: $(READY)
	$(BIN)/python -m tools.generate

benchmarks: $(READY)
	$(BIN)/python -m tests.benchmarks --quick

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "inat-ft needs Python 3.11 or newer; name one: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[demo]' --group dev
	touch $(READY)

clean:
	rm -rf $(VENV) inat-ft-demo
