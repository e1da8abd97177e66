# The two commands a new user needs: `make demo` and `make test`. Both set up `.venv` first.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# One stamp file stands for "everything pyproject.toml asks for is installed".
STAMP := $(VENV)/.installed

.PHONY: setup demo all-methods test lint types docs clean

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

# Every search method at reduced size, some hours on two cores, and its report (docs/all-methods.md).
# The command continues what it was stopped in.
all-methods: JOBS ?= 2
all-methods: FILES := benchmarks/all_methods
all-methods: RUNS := runs/all-methods
all-methods: setup
	@test -n "$(DATA)" -a -n "$(TABLE)" || \
	  { echo "usage: make all-methods DATA=cifar10.npz TABLE=nasbench201.csv [JOBS=2]" >&2; exit 2; }
	for part in "" _darts_pt _robust; do \
	  $(BIN)/zoopt-nas sweep --from $(FILES)/nasbench201$$part.toml --dataset $(DATA) \
	    --table $(TABLE) --jobs $(JOBS) --run-dir $(RUNS)/nasbench201$$part && \
	  $(BIN)/zoopt-nas sweep --from $(FILES)/s3$$part.toml --dataset $(DATA) \
	    --jobs $(JOBS) --run-dir $(RUNS)/s3$$part || exit; \
	done
	$(BIN)/zoopt-nas report $(RUNS) --out $(RUNS)/report.html

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
