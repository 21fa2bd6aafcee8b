# One command each: `make demo` runs the main job, `make test` the tests. Both set up what they need first.
PYTHON ?= python3
ENVS := $(or $(SYNERGY_ENVS),.envs)
TRAIN := $(ENVS)/train/bin/python
MAKEFLAGS += --no-print-directory

.PHONY: help setup demo test lint clean

help:
	@echo "make setup   the two environments, from the pins in launch/requirements (seconds when nothing changed)"
	@echo "make demo    set up, then SFT and RL taking turns on the tiny model, and a report"
	@echo "make test    set up, then the checks and all tests"
	@echo "make lint    set up, then formatting, lint and types only"
	@echo "make clean   remove environments, builds and caches; runs stay"

setup:
	@$(PYTHON) launch/setup_envs.py

demo: setup
	@$(TRAIN) -m synergy.run recipe=progressive

lint: setup
	@$(TRAIN) -m ruff check .
	@$(TRAIN) -m ruff format --check .
	@$(TRAIN) -m mypy

test: lint
	@$(TRAIN) -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder

clean:
	rm -rf $(ENVS)/train $(ENVS)/eval $(ENVS)/tools build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
