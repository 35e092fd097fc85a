PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test oldest newest coverage lint bench notebooks docs clean

demo: .venv/.demo
	$(BIN)/implicit compare digits --models gd,pgd-deq
	@echo "All networks: $(BIN)/implicit compare digits; other tasks: $(BIN)/implicit compare --list"

test: .venv/.dev lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -q

# the ends of what setup.cfg allows, each in an environment of its own: a version of Python, or the path of one. Beside old
# packages, dependencies of theirs are newer and warn of it
OLDEST ?= 3.10
oldest: .venv/.dev
	$(call tested,$(OLDEST),lowest-direct,-W ignore::DeprecationWarning -W ignore::FutureWarning)

NEWEST ?= 3.13
newest: .venv/.dev
	$(call tested,$(NEWEST),highest,)

define tested
$(BIN)/python -m pip install --quiet uv
$(BIN)/uv venv --quiet --clear --seed --python $(1) .venv-$@
$(BIN)/uv pip install --quiet --compile-bytecode --python .venv-$@ --resolution $(2) -r setup.cfg --extra dev
$(BIN)/uv pip install --quiet --python .venv-$@ --no-deps --editable .
OMP_NUM_THREADS=1 .venv-$@/bin/python -m pytest -n 2 --dist worksteal -q $(3)
endef

coverage: .venv/.dev
	$(BIN)/python -m coverage erase # what a run that failed has left would count
	OMP_NUM_THREADS=1 $(BIN)/python -m coverage run -m pytest -n 2 --dist worksteal -q
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# one thread, as the README's tables have it: on a busy or small machine several say more about it than about the code
bench: export OMP_NUM_THREADS ?= 1
bench: .venv/.bench
	$(BIN)/python -m benchmarks solvers
	$(BIN)/python -m benchmarks gradients
	$(BIN)/python -m benchmarks parallel
	$(BIN)/python -m benchmarks memory
	$(BIN)/python -m benchmarks training
	$(BIN)/python -m benchmarks gpu

notebooks: .venv/.dev
	for notebook in notebooks/*.ipynb; do \
		$(BIN)/jupyter-execute --inplace "$$notebook" || exit 1; \
	done

docs: .venv/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# torch and torchvision come from the package index in one step, so that they match each other
.venv/.demo: setup.cfg
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[train,plots,vision]'
	touch $@

.venv/.dev: .venv/.demo
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

.venv/.bench: .venv/.demo
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	touch $@

.venv/.docs: .venv/.demo
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@

clean:
	rm -rf .venv .venv-oldest .venv-newest .coverage* site build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
