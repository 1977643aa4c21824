# draftgym: what a newcomer would type.
PYTHON ?= python3
RUN := .venv/bin/python

.PHONY: help setup target train evaluate test lint types check bench format clean

help:  ## List these commands
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

target: .venv/.ready
	@$(RUN) -c "from decoding.embedded import embedded_target; embedded_target()"

setup: target  ## Virtual environment, pinned dependencies, embedded target

train: setup  ## Train a router on real decoding for some minutes, then compare it with its baselines
	$(RUN) train_router.py --arms eagle3:2 eagle3:4x8 dflash:2 ngram:8 plain --minutes 4
	$(RUN) evaluate.py --limit-per-category 2 --max-new-tokens 64 \
	    --policies plain eagle3 dflash ngram random entropy runs/router/policy

evaluate: setup  ## Every policy on all 150 held-out prompts (about half an hour)
	$(RUN) evaluate.py --json runs/evaluation.json

test: setup  ## The test suite
	$(RUN) -m pytest

lint: .venv/.ready  ## Style
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

types: .venv/.ready  ## Types
	$(RUN) -m mypy

check: lint types test  ## Everything that must pass before a commit

bench: setup  ## Measurements: arms, speed against transformers, cost of routing, losslessness
	$(RUN) -m rollouts.collect --limit-per-category 2 --out runs/traces
	$(RUN) -m benchmarks.arms --traces runs/traces --json runs/arms.json
	$(RUN) -m benchmarks.against_transformers --per-category 1 --json runs/speed.json
	$(RUN) -m benchmarks.router_overhead
	$(RUN) -m benchmarks.losslessness --per-category 1 --max-new-tokens 48 --json runs/losslessness.json

format: .venv/.ready  ## Put the code into shape
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

clean:  ## Remove the environment and all runs
	rm -rf .venv runs
