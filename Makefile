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

# thousands of requests to the server, right ones and wrong ones
.PHONY: test-api
test-api: $(READY)
	$(BIN)/pytest tests/tiny/test_server_api.py -m api -s

# needs llama.cpp itself: $(BIN)/pip install llama-cpp-python builds it from source, in about 17 minutes
.PHONY: test-gguf
test-gguf: $(READY)
	$(BIN)/pytest tests/tiny/test_export_gguf.py -m gguf -rs

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
