# Everything a person needs: `make demo` and `make test` set themselves up.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# recordings to measure on
VIDEOS ?= ../shared/videos
PIP    := $(BIN)/python -m pip --disable-pip-version-check -q

# parts of `make test-faults`, each a module of tests/faults, in an order that keeps two lanes equally long;
# PART="storage media" runs some of them, LANES=1 one after the other
PART   ?= runs storage protocol cluster publishing load media security models
LANES  ?= 2

.PHONY: demo demo-cluster test test-faults test-cluster check bench clean coverage

demo: $(VENV)/.installed
	$(BIN)/clipmill demo

# The same on a Ray cluster of this machine, a head and three nodes, one of which is killed half way; made anew every time.
demo-cluster: $(VENV)/.installed
	rm -rf clipmill-demo-cluster
	$(BIN)/clipmill demo --nodes 3 --output clipmill-demo-cluster

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest

# Breaks everything, at length; writes what was tried and survived into docs/reliability.md.
test-faults: $(VENV)/.installed-dev
	@mkdir -p .faults && rm -f .faults/failed
	@$(MAKE) --no-print-directory --keep-going --jobs $(LANES) --output-sync=target $(PART:%=fault-%) || touch .faults/failed
	$(BIN)/python -m tests.faults.report .faults docs/reliability.md
	@test ! -e .faults/failed

# a part by itself
fault-%: $(VENV)/.installed-dev
	$(BIN)/python -m pytest tests/faults/test_$*.py --long --record .faults

# Installs, starts and schedules what clusters are made of; docs/cluster.md says what that covers. Wants Debian's package prometheus.
test-cluster: $(VENV)/.installed-dev
	CLIPMILL_REQUIRE_PROMETHEUS=1 $(BIN)/python -m pytest tests/cluster --long

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Of the parts that need no Ray; fails under 90%.
coverage: $(VENV)/.installed-dev
	$(BIN)/python -m pytest tests/schemas tests/stages --cov=schemas --cov=stages --cov-report=term --cov-fail-under=90

# The models on a GPU want the extra `bench` beside it, which asks the GPU how busy it is.
bench: $(VENV)/.installed-dev
	$(PIP) install -c constraints.txt -e '.[dev,bench]'
	$(BIN)/python -m benchmarks.decode --videos $(VIDEOS)
	$(BIN)/python -m benchmarks.shots.run --seeds 8 --real $(VIDEOS)
	$(BIN)/python -m benchmarks.job --videos $(VIDEOS)
	$(BIN)/python -m benchmarks.peers --videos $(VIDEOS)
	$(BIN)/python -m benchmarks.gpu
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.long_files
	$(BIN)/python -m benchmarks.growth --videos $(VIDEOS)
	$(BIN)/python -m benchmarks.planning
	$(BIN)/python -m benchmarks.publishing
	$(BIN)/python -m benchmarks.requests
	$(BIN)/python -m benchmarks.simulation
	$(BIN)/python -m benchmarks.scale
	$(BIN)/python -m benchmarks.report

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .faults clipmill-demo clipmill-demo-cluster

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
