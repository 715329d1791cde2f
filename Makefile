# Two commands do it all on a fresh machine (Linux, Python 3.11+, make, a C compiler):
#   make train    install, then distil and quantise the embedded default
#   make test     install with the dev extra, then ruff and the tests known to pass
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
SERVE  := .venv-serve

.PHONY: train test test-all lint types check-machine clean

train: $(VENV)/.installed
	$(BIN)/python scripts/train.py recipe=distill_qat

# the files of tests/passing.txt; `make test-all` runs every test and mypy
test: $(VENV)/.installed-dev lint
	$(BIN)/python -m pytest -m "not serving and not nightly and not cuda" $$(cat tests/passing.txt)

test-all: $(VENV)/.installed-dev lint types
	$(BIN)/python -m pytest -m "not serving"

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

check-machine:
	@command -v $(PYTHON) >/dev/null || { echo "missing: $(PYTHON); install Python 3.11 or newer, or PYTHON=path"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "too old: `$(PYTHON) --version`; Python 3.11 or newer is needed: make PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "missing: the venv module; install python3-venv"; exit 1; }
	@command -v $${CC:-cc} >/dev/null || { echo "missing: a C compiler; install gcc (torch.compile needs it)"; exit 1; }

$(VENV)/.made: | check-machine
	$(PYTHON) -m venv $(VENV)
	@touch $@

# torch first and by its exact version: anything else may bring gigabytes of another build
$(VENV)/.torch: $(VENV)/.made constraints.txt
	$(BIN)/pip install -q "`grep '^torch==' constraints.txt`"
	@touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml constraints.txt
	$(BIN)/pip install -q -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed pyproject.toml constraints.txt
	$(BIN)/pip install -q -c constraints.txt -e ".[dev,onnx,sweep,deepspeed]"
	@touch $@

clean:
	rm -rf $(VENV) $(SERVE) build dist *.egg-info
