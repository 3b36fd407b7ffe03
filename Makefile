.PHONY: help demo test promises bench
.DEFAULT_GOAL := help
PYTHON := .venv/bin/python

help:
	@echo "make demo      two rounds of the tiny world, end to end, into demo/"
	@echo "make test      the tests"
	@echo "make promises  kills, learning results and other long checks"
	@echo "make bench     the benchmarks"

.venv/complete: pyproject.toml setup.py .ci/install
	@.ci/install

demo: .venv/complete
	@echo "nemo-sdg run tiny --out demo"
	@.venv/bin/nemo-sdg run tiny --out demo

test: .venv/complete
	$(PYTHON) -m pytest tests

promises: .venv/complete
	$(PYTHON) -m pytest tests/promises

bench: .venv/complete
	$(PYTHON) -m pytest tests/benchmarks
