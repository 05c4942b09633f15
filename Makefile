# One command per task. Each sets up first what is missing: a .venv in this checkout with everything in it.
#   make demo        photos of the embedded sample -> report, splats, mesh (a few minutes)
#   make install     make .venv and install into it
#   make test        checks, then all tests
#   make check       format, lint, types, layering
#   make peers       independent readers of our file formats (npm), which tests compare with where they are
#   make bench       speed, measured here
#   make gpu-check   tests and speed on an NVIDIA GPU, where there is one
# PYTHON=python3.12 chooses the interpreter of a new .venv; PIP_FLAGS adds to `pip install`, such as
# PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu" for the small CPU build of torch on Linux.

# The first that really runs and is new enough; a name on the PATH may be a version manager's empty promise.
ifndef PYTHON
PYTHON := $(shell for p in python3 python3.12 python3.11 python3.13 python3.14; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
endif
PIP_FLAGS ?=
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed
NATIVE := $(shell find cuda -type f)

# Real photo sets beside the checkout are used where there are any; tests that need them skip otherwise.
ifndef MAQUETTE_DATA
ifneq ($(wildcard ../shared/data),)
export MAQUETTE_DATA := $(abspath ../shared/data)
endif
endif
# torch's OpenMP threads must not spin against the kernels' own threads.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: install demo test check peers bench gpu-check clean
.DEFAULT_GOAL := install

install: $(STAMP)

# Installed anew when what is compiled or required has changed. Without a C++ compiler the build says so and goes on.
$(STAMP): pyproject.toml constraints.txt $(NATIVE)
	@test -n "$(PYTHON)" || { echo "Maquette needs Python 3.11 or newer; name one with make PYTHON=..."; exit 1; }
	@test -x $(RUN) || { echo "Making $(VENV) with $$($(PYTHON) --version)"; $(PYTHON) -m venv $(VENV); }
	@echo "Installing into $(VENV); the log is $(VENV)/install.log"
	@$(RUN) -m pip install --disable-pip-version-check -v $(PIP_FLAGS) -c constraints.txt -e ".[dev,usd,view,generate,web]" > $(VENV)/install.log 2>&1 \
	  || { tail -n 40 $(VENV)/install.log; echo "The installation failed; all of it is in $(VENV)/install.log"; exit 1; }
	@sed -n '/WITHOUT its CPU kernels/,/install again/p' $(VENV)/install.log
	@touch $@
	@$(RUN) -c 'from scene.ops import native; print("Installed:", native.explain())'

demo: $(STAMP)
	$(VENV)/bin/maquette demo

check: $(STAMP)
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m pyright
	$(RUN) -m pytest tests/test_layering.py

# Without npm, or without its registry, the tests that compare with these packages skip and say so.
PEERS := $(VENV)/peers/.installed
$(PEERS): tests/peer_packages/package.json $(STAMP)
	@mkdir -p $(@D) && cp $< $(@D)
	@if ! command -v npm > /dev/null; then echo "No npm here: tests against other programs' readers will skip"; \
	elif timeout 300 npm install --prefix $(@D) --ignore-scripts --no-audit --no-fund > $(@D)/install.log 2>&1; then touch $@; \
	else echo "npm could not install the peers ($(@D)/install.log): tests against them will skip"; fi

peers: $(PEERS)

# A file of tests at a time for each processor, in their order, four at most: some take 2 GB.
test: check $(PEERS)
	$(RUN) -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

bench: $(STAMP)
	$(RUN) -m benchmarks.gaussians

# Installs nothing: a machine that is lent for this may be bare and without a network. The first Python whose torch sees
# a GPU does it: that of .venv, or the system's own. CHECK_FLAGS="--minutes 5" and so on go to benchmarks/gpu_check.py.
gpu-check:
	@for p in $(RUN) $(PYTHON) python3; do \
	  if $$p -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2> /dev/null; then \
	    exec $$p -m benchmarks.gpu_check $(CHECK_FLAGS); \
	  fi; \
	done; echo "gpu-check: no torch here sees an NVIDIA GPU, so there is nothing to check"

clean:
	rm -rf $(VENV) build .pytest_cache .ruff_cache .hypothesis
