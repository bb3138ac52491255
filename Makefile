# Everything a fresh clone needs: Python 3.11 or newer, git and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-done

# Spinning OpenMP threads cost more than the work; torch reads this once, at its import.
export OMP_WAIT_POLICY := PASSIVE
export PIP_DISABLE_PIP_VERSION_CHECK := 1

DEMO := outputs/demo
# A process per core, but each needs up to 2 GB. A file stays in one, for its tests share what they compute.
# Bytecode is written in any case: else each of the many processes compiles all that it imports.
PYTEST = env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

.PHONY: demo repro test test-fast test-slow lint bench setup clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# pip would compile 26,000 modules, most of which nothing imports: only those that are, at the end.
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e '.[dev]'
	@# The reference for LPIPS; its dependency torchvision, which the tests do without, would replace torch.
	$(BIN)/python -m pip install --quiet --no-compile --no-deps lpips==0.1.4 || echo "No lpips package: the tests that compare with it are skipped."
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m flows.first_use
	@touch $@

demo: setup
	$(BIN)/python -m flows.demo $(DEMO)

# What has changed since the last time, over the dataset in params.yaml. In place of these, as DVC knows them: make repro DVC="exp run".
repro: setup
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/dvc $(or $(DVC),repro)

test: setup
	$(PYTEST) -m "not slow"

# What takes minutes: whole reconstructions twice, servers that are killed, training until a clip is known by heart.
test-slow: setup
	$(PYTEST) -m "slow and not gpu"

# While working, in about a minute: without servers, other processes and whole reconstructions; see `long` in pyproject.toml.
test-fast: setup
	$(PYTEST) -m "not slow and not long"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy reconx_core tasks reconx flows

bench: setup
	$(BIN)/python -m benchmarks.run

clean:
	rm -rf $(DEMO) artifacts
