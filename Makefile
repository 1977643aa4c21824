# draftgym: what a newcomer would type.
PYTHON ?= python3
RUN := .venv/bin/python
DRAFTGYM := .venv/bin/draftgym

.PHONY: help setup target train traces figures drafters users scheduler edge evaluate proto test test-all fuzz lint types docs check bench gpu format clean

help:  ## List these commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

target: .venv/.ready
	@$(RUN) -c "from draftgym.decoding.model.embedded import embedded_target; embedded_target()"

setup: target  ## Virtual environment, pinned dependencies, embedded target

train: setup  ## Trace real decoding, train a router on it, compare it with its baselines by the clock
	$(DRAFTGYM) collect --prompts train --limit-per-category 6 --out runs/traces
	$(DRAFTGYM) train-router --traces runs/traces --run runs/router
	$(DRAFTGYM) evaluate --limit-per-category 1 --max-new-tokens 48 --report runs/report \
	    --policies plain 'suffix:16~0.7>eagle3:3x6~0.06' ngram:8 eagle3:3x6 runs/router/policy

traces: setup  ## What every arm would do at every position of texts from all training prompts
	$(DRAFTGYM) collect --prompts train --out runs/traces

evaluate: setup  ## Every policy on all 150 held-out prompts (about half an hour)
	$(DRAFTGYM) evaluate --json runs/evaluation.json

proto: .venv/.ready  ## Code of the messages between devices and edge server, from serving/edge/edge_v1.proto
	cd serving/edge && ../../$(RUN) -m grpc_tools.protoc -I. --python_out=. --pyi_out=. edge_v1.proto

TESTS := OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto --dist loadfile --no-loadscope-reorder --max-worker-restart 0

test: setup  ## The test suite without its slow tests, a process per core
	$(TESTS) -m 'not slow'

test-all: setup  ## The whole test suite, as CI runs it
	$(TESTS)

fuzz: setup  ## 10,000 damaged files and strange inputs: no stack trace, nothing lost
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto tests/fuzz --hypothesis-profile fuzz

lint: .venv/.ready  ## Style
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

types: .venv/.ready  ## Types
	$(RUN) -m mypy

.venv/.docs: .venv/.ready
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

docs: .venv/.docs  ## The documentation, built strictly into build/site
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

check: lint types test-all  ## Everything that must pass before a commit

bench: traces  ## Measurements, small: arms, routers, speed, switching, losslessness
	$(DRAFTGYM) collect --prompts heldout --limit-per-category 2 --out runs/heldout-small
	$(RUN) -m benchmarks.routers.arms --traces runs/heldout-small --json runs/arms.json
	$(RUN) -m benchmarks.routers.routing --heldout runs/heldout-small --seeds 1 --rounds 200000 --json runs/routing.json
	$(RUN) -m benchmarks.system.trace_speed --texts 10 --rounds 200000
	$(RUN) -m benchmarks.system.switch_cost --repeats 5 --json runs/switch_cost.json
	$(RUN) -m benchmarks.system.catch_up --per-category 1 --max-new-tokens 48 --json runs/catch_up.json
	$(DRAFTGYM) evaluate --against transformers --limit-per-category 1 --json runs/speed.json
	$(RUN) -m benchmarks.system.router_overhead
	$(RUN) -m benchmarks.system.losslessness --per-category 1 --max-new-tokens 48 --json runs/losslessness.json

gpu: setup  ## What your accelerator makes of it, in about ten minutes: runs/gpu/card.md
	$(RUN) -m benchmarks.system.accelerator --require-accelerator --out runs/gpu

figures: setup  ## All figures of docs/results for the drafters that are there, and the router shipped with them
	$(MAKE) --no-print-directory -f benchmarks/figures.mk RUN=$(RUN) DRAFTGYM=$(DRAFTGYM)

drafters: setup  ## Drafters trained on texts that their target writes (hours; far less on an accelerator)
	$(MAKE) --no-print-directory -f benchmarks/drafters.mk RUN=$(RUN) DRAFTGYM=$(DRAFTGYM)

users: setup  ## Traces for schedulers: what devices of many users would draft
	$(DRAFTGYM) collect --dtype float32 --arms small:16 ngram:16 --prompts train --out runs/users
	$(DRAFTGYM) collect --dtype float32 --arms small:16 ngram:16 --prompts heldout \
	    --out runs/users-heldout

scheduler: users  ## Train a scheduler of many users and compare it with the closed forms
	$(DRAFTGYM) train-scheduler --cell.users 16 --cell.fewest 4
	$(DRAFTGYM) evaluate --traces runs/users-heldout --known runs/users --report runs/scheduler-report \
	    --scheduler fixed heterogeneous@beta heterogeneous@beta+found oracle runs/scheduler/policy

edge: users  ## All figures of docs/results/schedulers.md (hours)
	$(MAKE) --no-print-directory -f benchmarks/edge.mk RUN=$(RUN) DRAFTGYM=$(DRAFTGYM)

format: .venv/.ready  ## Put the code into shape
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

clean:  ## Remove the environment and all runs
	rm -rf .venv runs
