# Two commands do everything on a fresh machine, set-up included:
#   make ablation   the main study on its embedded data: trains, prints the table, draws the figures
#   make test       lint, types and tests
# and  make test-slow   the tests that take longest: kernels compiled for an H100 (no GPU is needed), killed and stopped jobs
#      make test-slurm  tests against a real SLURM, started on this machine and stopped again; needs root and packages
#      make kill-sweep  kills drivers of small studies at every file operation and compares how they end; an hour
#      make bench   the benchmarks behind the README's figures of speed
#      make gpu-check   tests, bench and training on a GPU, under 8 minutes, into OUT/gpu-check.tar.gz; installs nothing

PYTHON ?= python3
OUT ?= reports
BIN := .venv/bin

.PHONY: ablation test test-slow test-slurm kill-sweep bench gpu-check clean

ablation: .venv/.suite
	$(BIN)/python -m studies run axes

test: .venv/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test-slow: .venv/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m slow

test-slurm: .venv/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --durations=12 tests/slurm

kill-sweep: .venv/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.kill_sweep

bench: .venv/.suite
	for script in $(filter-out gpu_check,$(basename $(notdir $(wildcard benchmarks/[a-z]*.py)))); do echo "== $$script"; $(BIN)/python -m benchmarks.$$script || exit 1; done

gpu-check:
	$(PYTHON) -m benchmarks.gpu_check --out $(OUT)

.venv/.suite: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/.test: .venv/.suite constraints-cpu.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	# a PyTorch for CUDA has brought its own Triton; where there is none, tests interpret the kernels
	$(BIN)/python -c "import triton" 2>/dev/null || $(BIN)/python -m pip install --quiet -r constraints-cpu.txt
	touch $@

clean:
	rm -rf .venv build *.egg-info
