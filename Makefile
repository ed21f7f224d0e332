# Everything a person needs: `make demo` and `make test` set themselves up.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# recordings to measure on
VIDEOS ?= ../shared/videos
PIP    := $(BIN)/python -m pip --disable-pip-version-check -q

.PHONY: demo test check bench clean coverage

demo: $(VENV)/.installed
	$(BIN)/clipmill demo

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Of the parts that need no Ray; fails under 90%.
coverage: $(VENV)/.installed-dev
	$(BIN)/python -m pytest tests/schemas tests/stages --cov=schemas --cov=stages --cov-report=term --cov-fail-under=90

bench: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.decode $(VIDEOS)
	$(BIN)/python -m benchmarks.shots.run --seeds 8 --real $(VIDEOS)

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis clipmill-demo

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Clipmill needs Python 3.11 or newer; set PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

# torch by itself first: asked for by its exact version it comes as the build for this machine.
$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) install -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@
