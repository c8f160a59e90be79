# Each target makes the virtual environment first, if it is not there.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
INSTALLED = $(VENV)/installed
EMOJI_INSTALLED = $(VENV)/installed-emoji

.PHONY: train test lint train-emoji kernel-report clean

train: $(INSTALLED)  ## train on drawn shapes: two minutes on two cores
	$(BIN)/python -m minicoca train

test: $(INSTALLED)
	$(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

train-emoji: $(EMOJI_INSTALLED) data/emoji/fetched  ## train on real drawings: 15 minutes
	$(BIN)/python -m minicoca train --preset emoji

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

$(EMOJI_INSTALLED): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[emoji]"
	touch $@

# Twemoji's and Fluent's drawings; Noto's as pictures where its font is not installed.
data/emoji/fetched:
	mkdir -p data/emoji
	npm pack --silent --pack-destination data/emoji \
	    twemoji-colr-font@15.0.3 @lobehub/fluent-emoji-3d@1.1.0
	ls /usr/share/fonts/truetype/noto/NotoColorEmoji.ttf 2>/dev/null || \
	    npm pack --silent --pack-destination data/emoji emoji-datasource-google@16.0.0
	touch $@

kernel-report: $(INSTALLED)  ## registers, spills, loads of every kernel, with three Tritons, no GPU
	$(BIN)/python -m minicoca.kernels.compile_report --write
	for version in 3.6.0 3.9.0; do \
	    $(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/triton-$$version \
	        triton==$$version && \
	    PYTHONPATH=$(VENV)/triton-$$version $(BIN)/python -m minicoca.kernels.compile_report --write \
	        || exit 1; \
	done

clean:  ## the virtual environment and caches; never your runs or data
	rm -rf $(VENV) .pytest_cache .hypothesis .ruff_cache
