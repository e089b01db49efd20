PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint clean

demo: .venv/installed
	$(BIN)/prefloop demo

test: .venv/installed-dev lint
	$(BIN)/pytest --numprocesses 2

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "prefloop needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml
	$(BIN)/pip install -q -e .
	touch $@

.venv/installed-dev: .venv/bin/python pyproject.toml
	$(BIN)/pip install -q -e '.[dev]'
	mkdir -p .venv/types && ln -sfn "$(CURDIR)" .venv/types/prefloop
	touch $@ .venv/installed

clean:
	rm -rf .venv build *.egg-info
