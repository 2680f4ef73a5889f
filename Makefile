# make train [ARGS="model=unet sampler=ddim schedule=linear"] | make evaluate ARGS="checkpoint=<run>" | make test | make test-all
# make bench [ARGS="--quick"] | make bench-gpu   speed beside diffusers and denoising-diffusion-pytorch; into docs/performance.md
# make chaos [ARGS="--kills 50 --seed 0"]   runs killed at random again and again, held against one that never was
# make mutants [ARGS="--n 300 --seed 0"]   how many small changes to the source the tests notice
PYTHON ?= python3
BIN = .venv/bin
READY = .venv/ready
PEERS = benchmarks/.venv/ready
.PHONY: train evaluate test test-all chaos mutants bench bench-gpu lint clean

train: $(READY)
	$(BIN)/python train.py $(ARGS)

evaluate: $(READY)
	$(BIN)/python evaluate.py $(ARGS)

test: lint
	$(BIN)/python -m pytest $(ARGS)

test-all: lint
	$(BIN)/python -m pytest -m "slow or not slow" $(ARGS)

chaos: $(READY)
	$(BIN)/python tests/chaos.py $(ARGS)

mutants: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[mutants]'
	nice $(BIN)/python mutation/sample.py $(ARGS)

bench: $(READY) $(PEERS)
	$(BIN)/python -m benchmarks.run $(ARGS)

bench-gpu: $(READY) $(PEERS)
	$(BIN)/python -m benchmarks.run --device cuda $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(READY): requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "anysigma needs Python 3.11 or newer; make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $(READY)

$(PEERS): benchmarks/requirements.txt
	$(PYTHON) -m venv benchmarks/.venv
	benchmarks/.venv/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/requirements.txt
	touch $(PEERS)

clean:
	rm -rf .venv benchmarks/.venv build dist
