# The two commands a new user needs: `make demo` and `make test`. Both set up `.venv` first.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# One stamp file stands for "everything pyproject.toml asks for is installed".
STAMP := $(VENV)/.installed

.PHONY: setup demo test lint types docs clean

setup: $(STAMP)

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

# The main job on real data: search space S3 with GLD on the handwritten digits that ship inside
# scikit-learn, retrain what it found, test it once, draw it. Every run gets a folder of its own.
demo: RUN := runs/demo-$(shell date +%Y%m%d-%H%M%S)
demo: setup
	$(BIN)/zoopt-nas search --space s3 --dataset digits --algo gld --run-dir $(RUN)
	$(BIN)/zoopt-nas train $(RUN) --run-dir $(RUN)/train
	$(BIN)/zoopt-nas show $(RUN)
	@echo "run folder: $(RUN), pictures: $(RUN)/pictures"

test: setup
	$(BIN)/python -m pytest --numprocesses auto

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

docs: setup
	$(BIN)/mkdocs build --strict --site-dir $(VENV)/site

clean:
	rm -rf $(VENV) build dist *.egg-info
