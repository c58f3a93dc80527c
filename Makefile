# Every command makes the environment it needs in .venv; nothing else has to be installed but
# Python 3.11 or newer, git and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
COPY := out/book

.DEFAULT_GOAL := help
.PHONY: help install demo test lint types unit notebooks book features clean

help:  ## Show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-10s %s\n", $$1, $$2}'

install: $(READY)  ## Make the environment in .venv (about 5 GB, most of it PyTorch)

$(READY): requirements.txt constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "sslpath needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)."; \
	    echo "Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

demo: $(READY)  ## Slides to retrieval on synthetic slides: pictures and results.json in out/demo
	$(BIN)/sslpath demo --out out/demo

test: lint types unit notebooks book  ## Everything that CI runs
	@echo "make test: all passed"

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(READY)
	$(BIN)/mypy

unit: $(READY)
	$(BIN)/pytest --doctest-modules --durations=10

# Chapters are executed once, on a copy, and the book is built from those outputs.
notebooks: $(READY)
	rm -rf $(COPY) && mkdir -p $(COPY)
	cp -r _config.yml _toc.yml book README.md CHANGELOG.md CONTRIBUTING.md $(COPY)
	$(BIN)/pytest --nbmake --overwrite --nbmake-timeout=300 --nbmake-kernel=python3 $(COPY)/book

book: notebooks  ## The book as a web site in out/book/_build/html
	$(BIN)/jupyter-book build $(COPY) -W --keep-going --all
	@echo "Open $(COPY)/_build/html/index.html"

clean:  ## Delete what was made, except the environment
	rm -rf out .pytest_cache .mypy_cache .ruff_cache .hypothesis
