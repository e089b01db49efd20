PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test slow gpu lint chromium clean

demo: .venv/installed
	$(BIN)/prefloop demo

test: .venv/installed-dev lint chromium
	$(BIN)/pytest --numprocesses 2 --dist worksteal -m "not slow"

# The tests that take seconds each: clusters, processes that are killed anywhere, whole runs. Each says why.
slow: .venv/installed-dev chromium
	$(BIN)/pytest --numprocesses 2 --dist worksteal -m slow

# On a machine with an NVIDIA GPU: compare its results with the CPU's, measure, and write a page to docs/gpu/.
gpu: .venv/installed-dev
	$(BIN)/python -m prefloop.bench.gpu

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# The tests of the pages want a browser; without one they are skipped and say so.
chromium:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || \
		{ test "$$(id -u)" = 0 && apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null; } || \
		echo "no chromium: the browser tests are skipped; as root, apt-get install chromium brings them in"

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
