# `make demo` and `make test` are all that a fresh machine needs: python3 >= 3.11 and a package registry.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DOCS := .venv-docs
DOCS_READY := $(DOCS)/.ready
EXTRAS := .venv-extras

.PHONY: demo test test-slow test-extras fuzz mutate audit coverage docs docs-serve screenshots lint generate benchmarks clean

demo: $(READY)
	rm -rf inat-ft-demo
	$(BIN)/inat-ft demo

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -q -m "not slow"

# Several processes, killed processes, every network and strategy: what takes minutes.
test-slow: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -q -m slow

# Trackers and exporters with large packages, which the other tests skip. Their environment adds these packages to .venv.
EXTRAS_TESTS := tests/tracking tests/engine/test_runtimes.py tests/evaluation/test_exports.py tests/evaluation/test_hub.py
SITE := -c 'import site; print(site.getsitepackages()[0])'
test-extras: $(READY)
	$(BIN)/python -m venv $(EXTRAS)
	echo "import site; site.addsitedir('$$($(BIN)/python $(SITE))')" > "$$($(EXTRAS)/bin/python $(SITE))/base.pth"
	$(EXTRAS)/bin/python -m pip install --quiet --disable-pip-version-check \
	  --editable '.[hub,openvino,mlflow,tensorboard,trackio]' 'transformers>=4.50'
	OMP_NUM_THREADS=1 $(EXTRAS)/bin/python -m pytest -q $(EXTRAS_TESTS)

# Damaged and hostile files for all readers; FUZZ_SECONDS is the time of all of them together.
FUZZ_SECONDS ?= 3600
fuzz: $(READY)
	OMP_NUM_THREADS=1 INAT_FT_FUZZ_SECONDS=$(FUZZ_SECONDS) $(BIN)/pytest -q tests/test_fuzz.py

# Small changes of the modules that decide whether a result is correct: how many of them a test notices.
MUTANTS ?= 60
mutate: $(READY)
	$(BIN)/python -m tools.mutate --sample $(MUTANTS)

# Known vulnerabilities and the licenses of all dependencies. The tools have an environment of their own and need a network.
audit: $(READY)
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/pip install --quiet --disable-pip-version-check pip-audit pip-licenses
	$(BIN)/pip freeze --exclude-editable > .venv-audit/requirements.txt
	.venv-audit/bin/pip-licenses --python $(BIN)/python --order license
	.venv-audit/bin/pip-audit --requirement .venv-audit/requirements.txt --no-deps --disable-pip

# Both tiers, and the processes that they start. The minimum of covered branches of each folder, in percent.
BRANCHES ?= inat_ft=95 plugins=95
coverage: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -q --cov --cov-report=term:skip-covered
	$(BIN)/python -m tools.coverage_gate $(BRANCHES)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict
	$(BIN)/lint-imports

# The documentation site, in site/. Its tools have an environment of their own, without PyTorch.
docs: $(DOCS_READY)
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict --clean

docs-serve: $(DOCS_READY)
	$(DOCS)/bin/mkdocs serve

# The pictures of the documentation, in docs/images. Needs Chromium or Chrome, but no network.
screenshots: $(READY)
	$(BIN)/python -m tools.screenshots

# The flags of `train`, the list of all options, docs/cli.md and docs/reference/, from the code.
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

$(DOCS_READY): pyproject.toml
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/pip install --quiet --disable-pip-version-check $$($(PYTHON) -c \
	  'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"])')
	touch $(DOCS_READY)

clean:
	rm -rf $(VENV) $(DOCS) $(EXTRAS) site .venv-audit inat-ft-demo
