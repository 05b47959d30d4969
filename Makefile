# Two commands: `make demo` and `make test`. Both set everything up first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test check reference clean

demo: $(READY)
	$(BIN)/tunesmith demo

test: $(READY)
	$(BIN)/pytest tests/unit tests/tiny -n 2 --dist loadfile

# every architecture of transformers: about six minutes
.PHONY: test-architectures
test-architectures: $(READY)
	$(BIN)/pytest tests/tiny/test_architectures.py -m architectures -n 2 --dist load

.PHONY: test-matrix
test-matrix: $(READY)
	$(BIN)/pytest tests -m matrix -n 2 --dist loadfile

.PHONY: test-gpu
test-gpu: $(READY)
	$(BIN)/pytest tests/gpu -m gpu

check: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) test

reference: $(READY)
	$(BIN)/python -m tunesmith.run.reference docs/reference

clean:
	rm -rf $(VENV) runs

# torch comes first and alone: its version decides which build of it the others then accept
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; try: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --editable '.[dev]'
	touch $@

# all of it takes hours; a part: make bench PEERS=trl,llamafactory WORKLOADS=couplets REPEATS=1
.PHONY: bench
bench: $(READY)
	$(BIN)/python bench/run.py $(if $(PEERS),--peers $(PEERS)) $(if $(WORKLOADS),--workloads $(WORKLOADS)) \
		$(if $(REPEATS),--repeats $(REPEATS)) $(if $(STEPS),--steps $(STEPS)) $(BENCH)
	$(BIN)/python bench/report.py
