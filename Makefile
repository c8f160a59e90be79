# Each target makes the virtual environment first, if it is not there.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
INSTALLED = $(VENV)/installed
EMOJI_INSTALLED = $(VENV)/installed-emoji
SLOW = $(VENV)-slow

.PHONY: train test test-slow faults mutants lint train-emoji kernel-report clean

train: $(INSTALLED)  ## train on drawn shapes: a minute or two on two cores
	$(BIN)/python -m minicoca train

test: $(INSTALLED)  ## on all cores; the tests take one thread each
	$(BIN)/python -m pytest -n auto --dist worksteal

test-slow: $(SLOW)/installed $(SLOW)/browser data/emoji/fetched  ## full size, real drawings, open_clip beside us
	$(SLOW)/bin/python -m pytest -n auto --dist worksteal -m "slow or extras" --no-skips

faults: $(INSTALLED)  ## kills, full disks, lost power, damaged and hostile files: what was tried
	$(BIN)/python -m pytest tests/faults -m slow -n auto --dist worksteal

mutants: $(INSTALLED)  ## 200 random slips against the tests that run them: hours, resumable
	$(BIN)/python tests/mutants.py

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

train-emoji: $(EMOJI_INSTALLED) data/emoji/fetched  ## train on real drawings: 9 to 15 minutes
	$(BIN)/python -m minicoca train --preset emoji

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

$(EMOJI_INSTALLED): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[emoji]"
	touch $@

# open_clip needs torchvision, and that the torch that it was built for; clip_benchmark NumPy below 2.4.
# trackio wants other versions of Pillow and the Hub than these: it lies apart.
$(SLOW)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(SLOW)
	grep -vE "^(torch|triton|numpy)==" constraints.txt > $(SLOW)/constraints.txt
	$(SLOW)/bin/python -m pip install --quiet --constraint $(SLOW)/constraints.txt \
	    torch==2.14.1 torchvision==0.29.1 "numpy<2.4" --editable ".[dev,emoji,open-clip,notebook,eval,parquet,export,clip-benchmark]" \
	    tensorboard
	$(SLOW)/bin/python -m pip install --quiet --target $(SLOW)/trackio "$$(grep ^trackio== constraints.txt)"
	touch $@

# A browser for the page with the model inside: the system's, else Debian's where we may install it;
# without one its tests are skipped, which test-slow counts as a failure.
$(SLOW)/browser: $(SLOW)/installed
	command -v chromium || (apt-get update --quiet && apt-get install --yes --quiet \
	    --no-install-recommends chromium) || echo "no chromium: install it"
	touch $@

# Twemoji's and Fluent's drawings; Noto's as pictures where its font is not installed.
data/emoji/fetched:
	mkdir -p data/emoji
	npm pack --silent --pack-destination data/emoji \
	    twemoji-colr-font@15.0.3 @lobehub/fluent-emoji-3d@1.1.0
	ls /usr/share/fonts/truetype/noto/NotoColorEmoji.ttf 2>/dev/null || \
	    npm pack --silent --pack-destination data/emoji emoji-datasource-google@16.0.0
	touch $@

kernel-report: $(INSTALLED)  ## registers, spills, loads of every kernel; four Tritons, two assemblers
	$(BIN)/python -m minicoca.kernels.compile_report --write
	for version in 3.6.0 3.7.1 3.9.0; do \
	    $(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/triton-$$version \
	        triton==$$version && \
	    PYTHONPATH=$(VENV)/triton-$$version $(BIN)/python -m minicoca.kernels.compile_report --write \
	        || exit 1; \
	done
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/assembler nvidia-cuda-nvcc
	export TRITON_PTXAS_PATH=$$(ls $(abspath $(VENV))/assembler/nvidia/cu*/bin/ptxas) && \
	    $(BIN)/python -m minicoca.kernels.compile_report --write --targets sm_80 sm_90 && \
	    $(BIN)/python -m minicoca.kernels.bench.reckoned --write

clean:  ## the virtual environment and caches; never your runs or data
	rm -rf $(VENV) $(SLOW) .pytest_cache .hypothesis .ruff_cache
