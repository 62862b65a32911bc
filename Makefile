# `make test` and `make train` set everything up by themselves on a machine that has Python with venv.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# A stamp newer than the files that say what to install: a second call installs nothing.
READY := $(VENV)/.ready

.PHONY: help setup test test-fast train docs lint wheel clean

help:
	@echo "make test        run the tests (eight minutes)"
	@echo "make test-fast   leave out the slow ones: a first answer in under a minute"
	@echo "make train       fine-tune the shipped model on event recordings of digits (a minute and a half)"
	@echo "make docs        build the documentation into site/, and check its links"
	@echo "make lint        check the style and the types"
	@echo "make wheel       build the wheel"
	@echo "make clean       remove what the other targets made"

setup: $(READY)

$(READY): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@

# Two processes, as two cores are what CI has; files stay together, as their fixtures are costly.
IN_PARALLEL := -n 2 --dist loadfile
test: $(READY)
	$(BIN)/python -m pytest $(IN_PARALLEL)

test-fast: $(READY)
	$(BIN)/python -m pytest -m "not slow" $(IN_PARALLEL)

# A run that was stopped goes on where it was; one that is finished says its result again.
RUN := runs/ndigits_finetune
train: $(READY)
	$(BIN)/sj-ottt train --config examples/recipes/ndigits_finetune.yaml --out $(RUN) \
		$(if $(wildcard $(RUN)/last.pt),--resume)

# The theme would print a notice about another program before each build.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "open site/index.html"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

wheel: $(READY)
	rm -rf build dist
	$(BIN)/python -m build --wheel --outdir dist .

clean:
	rm -rf build dist runs site .pytest_cache .ruff_cache .mypy_cache *.egg-info
