PYTHON ?= python3
JOBS ?= 2
DEMO_ARGS ?=
ORGANISMS_ARGS ?=
PYTEST_ARGS ?=

BIN := .venv/bin
# One thread per process: small matrices run slower on more, and xdist already fills the cores.
PYTEST := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest

.PHONY: help setup demo organisms test test-slow test-long lint docs clean

help:
	@echo "make setup      create .venv and install everything that the targets below need"
	@echo "make demo       find a fine-tune's known difference, then diff two models (DEMO_ARGS='--organism_only')"
	@echo "make organisms  train the model organisms that are missing, check all (ORGANISMS_ARGS='topic --retrain')"
	@echo "make test       the quick tests (PYTEST_ARGS='-k partition', JOBS=4)"
	@echo "make test-slow  the tests that take minutes"
	@echo "make test-long  those that take so long that only a release waits for them"
	@echo "make lint       ruff and pyright"
	@echo "make docs       the documentation as a site, in build/site"
	@echo "make clean      remove .venv, caches and build folders; runs and checkpoints stay"

setup: .venv/.stamp

.venv/.stamp: pyproject.toml .ci/install.sh .ci/constraints.txt
	bash .ci/install.sh $(PYTHON)
	touch $@

demo: setup
	$(BIN)/python examples/demo.py $(DEMO_ARGS)

organisms: setup
	$(BIN)/python examples/organisms $(ORGANISMS_ARGS)

test: setup
	$(PYTEST) -m "not slow" -n $(JOBS) --dist loadgroup $(PYTEST_ARGS)

test-slow: setup
	$(PYTEST) -m "slow and not long" -n $(JOBS) --dist loadgroup --durations 15 $(PYTEST_ARGS)

test-long: setup
	$(PYTEST) -m long -n $(JOBS) --dist loadgroup --durations 15 $(PYTEST_ARGS)

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

docs: .venv/.docs-stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "build/site/index.html"

.venv/.docs-stamp: .venv/.stamp
	$(BIN)/python -m pip install --quiet -c .ci/constraints.txt -e '.[docs]'
	touch $@

clean:
	rm -rf .venv build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
