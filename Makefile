# Everything a fresh machine needs: `make demo` and `make test` set up .venv themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup demo test slow check bench compare docs clean

# One pip command with the constraints: a second, unconstrained one could replace the CPU torch by gigabytes of CUDA.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[timm,triton,data,viz,onnx,bench,test,check]'
	@touch $@

setup: $(VENV)/.installed

demo: setup
	$(BIN)/python -m pirn demo --out runs/demo

test: setup
	$(BIN)/python -m pytest -q

# Longer runs of what `make test` samples.
slow: setup
	$(BIN)/python -m pytest -q -m slow

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python -m pytest -q benchmarks --benchmark-sort=fullname

# The transport beside its public rivals: about ten minutes on two idle cores; rewrites docs/performance.md.
compare: setup
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python benchmarks/compare.py --threads 1 2 --out benchmarks/results/cpu.json
	$(BIN)/python benchmarks/page.py

docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
