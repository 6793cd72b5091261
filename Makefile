# `make demo` and `make test` do all their own set-up.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# pytest workers, of one thread each: one more than cores, as they also wait for processes
JOBS ?= 3
PYTEST = $(BIN)/python -m pytest -n $(JOBS) --dist worksteal
LINT = $(BIN)/ruff check && $(BIN)/ruff format --check && $(BIN)/mypy
DOCS = $(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

.PHONY: install demo test test-all test-fast test-slurm matrix lint docs bench gpu-check map rates transfer paper-small paper-short paper-full clean

install: $(STAMP)

# torch and torchvision come together, so that pip chooses builds that fit each other
$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --editable '.[all]'
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/python -m examples.demo $(DEMO_ARGS)

# lint and docs run beside the tests, and are shown after them
test: $(STAMP)
	@mkdir -p build
	@{ $(LINT) && $(DOCS); } > build/checks.log 2>&1 & checks=$$!; \
	$(PYTEST); tests=$$?; \
	wait $$checks; checks=$$?; cat build/checks.log; exit $$((tests + checks))

# and the long versions, some 20 minutes more
test-all: test
	$(PYTEST) -m long

test-fast: $(STAMP)
	$(BIN)/python -m pytest -n $(JOBS) -m "not slow and not long and not slurm"

# on a SLURM of one node, which is started on this machine and, on Debian, installed; needs root, and skips without
test-slurm: $(STAMP)
	$(BIN)/python -m pytest -n 0 tests/slurm -m slurm

# write docs/matrix.md and docs/sharded_matrix.md from what the tests find, also where the pages say something else
matrix: $(STAMP)
	-$(BIN)/python -m pytest -n $(JOBS) tests/matrix -m long --junitxml=build/matrix.xml
	$(BIN)/python -m tests.matrix.page build/matrix.xml
	$(BIN)/python -m pytest -n $(JOBS) tests/matrix -m "long or not long"
	$(BIN)/python -m tests.sharded.page

lint: $(STAMP)
	$(LINT)

docs: $(STAMP)
	$(DOCS)

# against gradient clipping, on this machine's CPU; nothing else should run
bench: $(STAMP)
	$(BIN)/python benchmarks/overhead.py --device cpu
	$(BIN)/python benchmarks/errors.py

# on a machine with a CUDA GPU, in the Python environment that it has (torch, triton, lightning, torchvision, pytest);
# at most 8 minutes; each stage leaves its output in $(GPU_OUT)
GPU_PYTHON ?= python3
GPU_OUT ?= results/gpu
gpu-check:
	PYTHONPATH=. $(GPU_PYTHON) -m tests.gpu.check --out $(GPU_OUT)

# where ZNorm helps: hours, in pieces by MAP_ARGS="--minutes 60", each of which goes on where the last one ended; then the
# published tables, the page and the picture
map: $(STAMP)
	$(BIN)/python -m examples.map.run $(MAP_ARGS); status=$$?; \
	$(BIN)/python -m examples.collection results/map --out docs/data/map --images 300 && $(BIN)/python -m examples.map.page && $(BIN)/python -m examples.map.picture; \
	exit $$status

# which learning rates work with each method
rates: $(STAMP)
	$(BIN)/python -m examples.map.rates $(RATES_ARGS)
	$(BIN)/python -m examples.collection results/rates --out docs/data/rates --images 300 && $(BIN)/python -m examples.map.rates_page

# whether the best learning rate is the same at other depths and widths
transfer: $(STAMP)
	$(BIN)/python -m examples.map.transfer $(TRANSFER_ARGS)
	$(BIN)/python -m examples.collection results/transfer --out docs/data/transfer --images 300 && $(BIN)/python -m examples.map.transfer_page

# the paper's experiments; DATA holds the data sets, see examples/paper/run.py. All go on where they ended
DATA ?= data
paper-short: $(STAMP)
	$(BIN)/python -m examples.paper.run --preset short --data $(DATA) --jobs 2 $(PAPER_ARGS)
paper-small: $(STAMP)
	$(BIN)/python -m examples.paper.run --preset small --data $(DATA) --jobs 2 $(PAPER_ARGS)

# in pieces of so many minutes, on a GPU, in the Python environment that it has
PAPER_MINUTES ?= 8
paper-full:
	PYTHONPATH=. $(GPU_PYTHON) -m examples.paper.run --preset full --data $(DATA) --minutes $(PAPER_MINUTES) --jobs 8 $(PAPER_ARGS)

clean:
	rm -rf $(VENV) docs/_build
