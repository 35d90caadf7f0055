# smoe: `make serve` and `make test` need python3 (3.11 or newer), its venv module and make, and install the rest.
#
#   TORCH_INDEX  index to install torch from: a URL, or
#                auto: PyTorch's CPU index on Linux without an NVIDIA card, if it can be reached; else pip's own,
#                empty: the index that pip is configured for
#   PYTHON       the interpreter to build .venv with (python3)
#   ARGS         extra arguments for pytest: make test ARGS=tests/engine
#
# `make serve` passes no flags; settings reach the server as SMOE_* (SMOE_PORT=9000 make serve).

PYTHON ?= python3
TORCH_INDEX ?= auto
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALLED := $(VENV)/.installed
INSTALLED_LINT := $(VENV)/.installed-lint
INSTALLED_FAST := $(VENV)/.installed-test-fast
INSTALLED_TEST := $(VENV)/.installed-test
INSTALLED_AGENTS := $(VENV)/.installed-agents

# Without what CMake writes there, which is newer than each install.
KERNELS := $(shell find model/native -name CMakeFiles -prune -o \( -name '*.cpp' -o -name '*.h' \) -print) \
    model/native/CMakeLists.txt

PYTEST := $(BIN)/python -m pytest
PARALLEL := --numprocesses 2 --dist loadfile --no-loadscope-reorder  # two test files at a time, long ones first
GPU_WITHOUT_CARD := tests/model/ops/triton tests/triton_compiled tests/model/test_mixtral_cuda_graphs.py \
    tests/model/test_profile_step.py tests/engine/execution/test_no_device_reads.py \
    tests/engine/startup/test_device_memory.py tests/engine/test_device_lost.py
NODE_CLIENTS := tests/e2e/clients/node
NODE_AGENTS := tests/agents/node
# Optional dependencies are installed by themselves: pip would compile the kernels again with `--editable ".[...]"`.
REQUIREMENTS := import sys, tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
    print(*p["dependencies"], *(d for extra in sys.argv[1:] for d in p["optional-dependencies"][extra]), sep="\n")
INSTALL_EXTRAS = $(BIN)/python -c '$(REQUIREMENTS)' $(1) | $(PIP) install --requirement /dev/stdin
NPM_INSTALL = npm install --prefix $(1) --no-package-lock --no-audit --no-fund --loglevel=error
empty :=
space := $(empty) $(empty)
comma := ,

# Tests that need a program or instructions which are absent here are left out, and a line says so.
LEFT_OUT := $(strip $(if $(shell command -v promtool),,prometheus) $(if $(shell command -v npm),,node) \
    $(if $(shell command -v chromium-headless-shell || command -v chromium),,browser) \
    $(if $(shell command -v kustomize),,kustomize) $(if $(shell command -v systemd-analyze),,systemd) \
    $(if $(and $(shell command -v aarch64-linux-gnu-g++),$(shell command -v qemu-aarch64)),,arm) \
    $(if $(shell grep --max-count 1 avx512_bf16 /proc/cpuinfo 2>/dev/null),,avx512_bf16) \
    $(if $(shell grep --max-count 1 amx_bf16 /proc/cpuinfo 2>/dev/null),,amx))
unless = -m "$(subst not_,not ,$(subst $(space), and ,$(addprefix not_,$(1))))"
ALL := $(if $(LEFT_OUT),$(call unless,$(LEFT_OUT)))
FAST := $(call unless,slow $(LEFT_OUT))
NOTE := $(if $(LEFT_OUT),@echo "not found here$(comma) so their tests are left out: $(LEFT_OUT) (.ci/run installs the programs)")

.DEFAULT_GOAL := help
.PHONY: help install run serve test test-fast test-full test-gpu-without-card test-agents check fuzz lock clean

help:  ## print this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 32

install: $(INSTALLED)  ## build .venv with the smoe command in it

run: $(INSTALLED)  ## install, then chat with the bundled model in this terminal
	exec $(BIN)/smoe run

serve: $(INSTALLED)  ## install, then serve the bundled model on 127.0.0.1:8000
	exec $(BIN)/smoe serve

test-fast: $(INSTALLED_FAST)  ## the tests that are not slow, for use while you work
	$(NOTE)
	$(PYTEST) $(PARALLEL) $(FAST) $(ARGS)

test: $(INSTALLED_TEST)  ## every test, scaled to fit 15 minutes on 2 cores
	$(NOTE)
	$(PYTEST) $(PARALLEL) $(ALL) $(ARGS)

test-full: $(INSTALLED_TEST)  ## every test at its full count
	$(NOTE)
	$(PYTEST) $(PARALLEL) $(ALL) --scale 10 $(ARGS)

test-gpu-without-card: $(INSTALLED_FAST)  ## what make test runs of the GPU backend: interpreter, machine code, graphs
	$(PYTEST) $(PARALLEL) --durations 10 $(GPU_WITHOUT_CARD) $(ARGS)

test-agents: $(INSTALLED_AGENTS)  ## Claude Code, Codex and other coding agents against a server (npm, about 2 GB)
	$(PYTEST) tests/agents/agents.py $(ARGS)

fuzz: $(INSTALLED_FAST)  ## mutate the kept inputs of tests/fuzz, a minute for each target
	$(BIN)/python -m tests.fuzz $(ARGS)

check: $(INSTALLED_LINT)  ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(filter %.cpp %.h,$(KERNELS))

# torch is left out: its builds come from TORCH_INDEX.
LOCK := deploy/requirements.lock
RUNTIME := import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
    print(*(d for d in p["dependencies"] + p["optional-dependencies"]["tokenizers"] if not d.startswith("torch>")), sep="\n")
lock: | $(BIN)/python  ## choose the newest versions for the image and write them with their hashes
	$(PIP) install --quiet "uv>=0.9"
	$(BIN)/python -c '$(RUNTIME)' | $(BIN)/uv pip compile - --quiet --upgrade --universal --python-version 3.11 \
	    --generate-hashes --no-annotate --no-header --no-emit-index-url --output-file $(LOCK)

clean:  ## remove .venv, caches and build output
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("smoe needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

# torch is installed first and alone, so that no other index can offer a bigger build: deploy/torch_index.py chooses.
# The sources of the CPU kernels are prerequisites, so that new sources never run with an old library.
$(INSTALLED): pyproject.toml $(KERNELS) | $(BIN)/python
	@echo "Installing smoe and its dependencies into $(VENV): some minutes, once. Most of it is torch and the CPU kernels,"
	@echo "which pip compiles while it says 'Preparing editable metadata'."
	@index=$$($(BIN)/python deploy/torch_index.py "$(TORCH_INDEX)") && { test -z "$$index" || \
	    $(PIP) install --index-url "$$index" "torch>=2.11" || { test "$(TORCH_INDEX)" = auto && \
	    echo "That failed: torch comes from the index that pip is configured for (usually with CUDA, 5.4 GB)"; }; }
	$(PIP) install --editable .
	@touch $@

# mypy follows the packages that the code imports: those of the runtime, and tokenizers.
$(INSTALLED_LINT): $(INSTALLED)
	$(call INSTALL_EXTRAS,lint tokenizers)
	@touch $@

$(INSTALLED_FAST): $(INSTALLED)
	$(call INSTALL_EXTRAS,test tokenizers cuda)
	@touch $@

$(INSTALLED_TEST): $(INSTALLED) $(NODE_CLIENTS)/package.json
	$(call INSTALL_EXTRAS,test clients browser tokenizers cuda)
	$(if $(shell command -v npm),$(call NPM_INSTALL,$(NODE_CLIENTS)))
	@touch $@

$(INSTALLED_AGENTS): $(INSTALLED_FAST) $(NODE_AGENTS)/package.json
	$(call NPM_INSTALL,$(NODE_AGENTS))
	@touch $@
