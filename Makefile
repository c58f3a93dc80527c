# Every command makes the environment it needs in .venv; nothing else has to be installed but
# Python 3.11 or newer, git and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
COPY := out/book
SITE := $(COPY)/_build/html

.DEFAULT_GOAL := help
.PHONY: help install demo test lint types unit notebooks book lab pages bench reliability clean

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

test: lint types unit pages  ## Everything that CI runs
	@echo "make test: all passed"

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/python tools/prose.py

types: $(READY)
	$(BIN)/mypy

unit: $(READY)
	$(BIN)/pytest --doctest-modules --durations=10 --ignore=tests/test_pages.py

# Chapters are executed once, on a copy with solved exercises; the book is built from those outputs.
notebooks: $(READY)  ## Execute the chapters, and show how long each took
	$(BIN)/python tools/chapters.py run $(COPY)

book: notebooks  ## The book as a web site in out/book/_build/html
	$(BIN)/jupyter-book build $(COPY) -W --keep-going --all
	cp book/*.ipynb $(SITE)/_sources/book/  # to download: with stubs, as readers want them
	$(BIN)/python tools/pages.py $(SITE)
	@echo "Open $(SITE)/index.html"

lab: $(READY)  ## Open the chapters in JupyterLab
	$(BIN)/jupyter lab book

pages: book  ## Look at the built pages with a headless browser, if there is one
	SSLPATH_SITE=$(SITE) $(BIN)/pytest tests/test_pages.py

bench: $(READY)  ## How fast it is, beside others, anew for the book's page (an hour, 20 GB)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check tiffslide
	$(BIN)/python benchmarks/speed.py

reliability: $(READY)  ## Kills, faults, fuzzing, memory, anew for the book's page (three hours)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check atheris
	$(BIN)/python benchmarks/reliability.py inputs
	$(BIN)/python benchmarks/reliability.py servers
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/fuzz.py
	$(BIN)/python benchmarks/reliability.py kills

clean:  ## Delete what was made, except the environment
	rm -rf out .pytest_cache .mypy_cache .ruff_cache .hypothesis
