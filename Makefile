# Every target makes the virtual environment it needs by itself, with python3 and pip only.
PYTHON ?= python3
PIP = -m pip install --quiet --disable-pip-version-check
TOPOLOGY ?= topologies/disagg.toml

.PHONY: up test test-vllm check bench clean help

help:            ## this text
	@grep -hE '^[a-z-]+: .*##|^[a-z-]+:  *##' Makefile | sed -E 's/:.*##/\t/'

.venv/base: pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/python $(PIP) -e .
	@touch $@

.venv/dev: .venv/base
	.venv/bin/python $(PIP) -e '.[dev]'
	@touch $@

.venv-vllm/ready: pyproject.toml tests/vllm/install.sh $(wildcard tests/vllm/cpu_collectives/*)
	PYTHON=$(PYTHON) sh tests/vllm/install.sh .venv-vllm
	@touch $@

up: .venv/base          ## install, then serve TOPOLOGY (default topologies/disagg.toml)
	@echo .venv/bin/dynorch up $(TOPOLOGY)
	@trap : INT; .venv/bin/dynorch up $(TOPOLOGY) || test $$? -eq 130

test: .venv/dev         ## unit tests, 10,000 simulator seeds, end to end on the simulated engine
	.venv/bin/python -m pytest -n 2 --dist loadfile --ignore tests/vllm

test-vllm: .venv-vllm/ready   ## the real engine, CPU build, through the daemon
	.venv-vllm/bin/python -m pytest -m vllm tests/vllm

check: .venv/dev        ## lint, types, house rules
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/python -m pytest tests/unit/test_tidy.py

bench: .venv/dev        ## benchmarks that need no vLLM
	.venv/bin/python benchmarks/idle.py

clean:                  ## remove the virtual environments
	rm -rf .venv .venv-vllm
