.PHONY: help demo test promises sabotage bench
.DEFAULT_GOAL := help
PYTHON := .venv/bin/python
# Test files at a time. Each forks up to four ranks of one thread, so a core for each is enough.
WORKERS ?= 2

help:
	@echo "make demo      two rounds of the tiny world, end to end, into demo/"
	@echo "make test      the tests"
	@echo "make promises  kills, learning results and other long checks"
	@echo "make sabotage  breaks each promise in a copy, and looks whether its test goes red"
	@echo "make bench     the benchmarks"

.venv/complete: pyproject.toml setup.py .ci/install
	@.ci/install

demo: .venv/complete
	@echo "torchrun --standalone --nproc_per_node 2 -m nemo_sdg run tiny --out demo"
	@OMP_NUM_THREADS=1 .venv/bin/torchrun --standalone --nproc_per_node 2 -m nemo_sdg run tiny --out demo

test: .venv/complete
	$(PYTHON) -m pytest tests --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

promises: .venv/complete
	$(PYTHON) -m pytest -s tests/promises

sabotage: .venv/complete
	$(PYTHON) tests/sabotage/run.py

bench: .venv/complete
	$(PYTHON) -m pytest -s tests/benchmarks
