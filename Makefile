# smoe: `make serve` and `make test` do everything on a machine that has python3 (3.11 or newer), its venv module and make.
#
#   TORCH_INDEX  index to take torch from. Empty: whatever pip is set up for, which on x86-64 is usually the CUDA build
#                (several GB). PyTorch's own CPU index keeps the install small:
#                make install TORCH_INDEX=https://download.pytorch.org/whl/cpu
#   PYTHON       the interpreter to build .venv with (python3)
#   ARGS         extra arguments for pytest: make test ARGS=tests/engine
#
# `make serve` passes no flags; settings reach the server as SMOE_* (SMOE_PORT=9000 make serve).

PYTHON ?= python3
TORCH_INDEX ?=
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALLED := $(VENV)/.installed
INSTALLED_TEST := $(VENV)/.installed-test

KERNELS := $(shell find model/native -name '*.cpp' -o -name '*.h') model/native/CMakeLists.txt

PYTEST := $(BIN)/python -m pytest
NODE_CLIENTS := tests/e2e/clients/node
NPM_INSTALL := npm install --prefix $(NODE_CLIENTS) --no-package-lock --no-audit --no-fund --loglevel=error
empty :=
space := $(empty) $(empty)

# Tests that need a program which is not here are left out, and that is said.
LEFT_OUT := $(if $(shell command -v promtool),,prometheus) $(if $(shell command -v npm),,node) \
    $(if $(shell command -v chromium),,browser)
ifneq ($(strip $(LEFT_OUT)),)
PYTEST += -m "$(subst not_,not ,$(subst $(space), and ,$(addprefix not_,$(strip $(LEFT_OUT)))))"
NOTE := @echo "not found here, so their tests are left out: $(strip $(LEFT_OUT)) (.ci/run installs them)"
endif

.DEFAULT_GOAL := help
.PHONY: help install serve test test-full check clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 18

install: $(INSTALLED)  ## build .venv with the smoe command in it

serve: $(INSTALLED)  ## install, then serve the bundled model on 127.0.0.1:8000
	exec $(BIN)/smoe serve

test: $(INSTALLED_TEST)  ## every promise, scaled to fit 15 minutes on 2 cores
	$(NOTE)
	$(PYTEST) $(ARGS)

test-full: $(INSTALLED_TEST)  ## every promise at its full count
	$(NOTE)
	$(PYTEST) --scale 10 $(ARGS)

check: $(INSTALLED_TEST)  ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:  ## remove .venv, caches and build output
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("smoe needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

# An index of torch's own is asked first and alone, so that no other one can offer a bigger build. What the CPU kernels
# are built of is named, so that new sources never meet an old library.
$(INSTALLED): pyproject.toml $(KERNELS) | $(BIN)/python
	@echo "Installing smoe and what it needs into $(VENV): some minutes, once; most of it is torch and compiling the CPU kernels."
	$(if $(TORCH_INDEX),$(PIP) install --index-url $(TORCH_INDEX) "torch>=2.11")
	$(PIP) install --editable .
	@touch $@

$(INSTALLED_TEST): $(INSTALLED) $(NODE_CLIENTS)/package.json
	$(PIP) install --editable ".[test,tokenizers,cuda]"
	$(if $(shell command -v npm),$(NPM_INSTALL))
	@touch $@
