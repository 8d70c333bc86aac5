# `make train` and `make test` are all a newcomer needs; both make the virtual environment first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: train test check venv format bench bench-smoke results deploy-packages smoke-deploy test-deploy clean

train: venv
	$(BIN)/headrace train configs/cartpole_ppo.yaml

# As many tests at a time as there are cores; `python -m pytest tests/rl` runs them one after another.
test: venv
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

check: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Long ones, that write docs/benchmarks.md, docs/scaling.md and docs/results.md. A peer that cannot be installed is left
# out, and the page says so.
bench: venv
	-$(BIN)/python -m benchmarks.peers install
	$(BIN)/python -m benchmarks

# Ratios to what stands beside Headrace, against the committed ones.
bench-smoke: venv
	$(BIN)/python -m benchmarks.smoke

results: venv
	$(BIN)/python -m benchmarks.results
	$(BIN)/python -m benchmarks.vtrace --write

# On a bare Debian machine these install and start what they need, a Docker engine included.
deploy-packages: venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[deploy]'

smoke-deploy: deploy-packages
	deploy/bootstrap $(BIN)/python -m pytest -m deploy tests/deploy/compose/test_smoke.py

test-deploy: deploy-packages
	deploy/bootstrap --tools $(BIN)/python -m pytest -m deploy tests/deploy

venv: $(VENV)/.installed

# torch first and pinned: a dependency that asks for it before it is there would choose a build of its own.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Headrace needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[train,cli,classic,box2d,mujoco,atari,minatar,crafter,multiagent,dev]'
	touch $@

clean:
	rm -rf $(VENV)
