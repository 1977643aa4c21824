# Everything that depends on the drafters' weights, renewed. `make figures` runs this file.
#
# All of it lies in a folder named after the weights, so changed drafters get new traces, routers
# and figures, and the old ones stay. Interrupted, the same command goes on: results that are there
# are not made again (delete one to have it made), and the long steps go on inside, too: collecting
# after the last whole shard, benchmarks.routers.routing after the last trained router (PPO and DQN
# within one). All others begin again.
RUN ?= .venv/bin/python
DRAFTGYM ?= .venv/bin/draftgym
# git is there wherever this project is; sha256sum is not.
WEIGHTS := $(shell cat checkpoints/*/model.safetensors | git hash-object --stdin | cut -c 1-8)
HERE := runs/figures-$(WEIGHTS)
ROUTER := checkpoints/router-smollm2-135m
# The strongest baseline, and what `draftgym generate` does unless it is told.
RULE := 'suffix:16~0.7>eagle3:3x6~0.06'
RESULTS := routing.json arms.json knowable.json switch_cost.json catch_up.json trace_speed.json clock.json speed.json
TRACES := $(addprefix $(HERE)/,train.done heldout.done heldout-t1.done train-t1.done train-t06.done)
COLLECT = $(DRAFTGYM) collect --dtype float32 --out $(basename $@)

.PHONY: figures ship
.DELETE_ON_ERROR:
.NOTPARALLEL:

figures: $(addprefix $(HERE)/,$(RESULTS)) ship
	$(RUN) -m benchmarks.report $(addprefix $(HERE)/,$(RESULTS)) > $(HERE)/figures.md

$(HERE)/train.done:
	$(COLLECT) --prompts train
	touch $@

$(HERE)/heldout.done:
	$(COLLECT) --prompts heldout
	touch $@

$(HERE)/heldout-t1.done:
	$(COLLECT) --prompts heldout --temperature 1 --limit-per-category 12
	touch $@

$(HERE)/train-t1.done:
	$(COLLECT) --prompts train --temperature 1 --limit-per-category 15
	touch $@

$(HERE)/train-t06.done:
	$(COLLECT) --prompts train --temperature 0.6 --limit-per-category 15
	touch $@

$(HERE)/arms.json: $(HERE)/heldout.done
	$(RUN) -m benchmarks.routers.arms --traces $(HERE)/heldout --json $@

$(HERE)/knowable.json: $(HERE)/train.done $(HERE)/heldout.done
	$(RUN) -m benchmarks.routers.knowable --traces $(HERE)/train --heldout $(HERE)/heldout --json $@

$(HERE)/routing.json: $(TRACES)
	$(RUN) -m benchmarks.routers.routing --traces $(HERE)/train --heldout $(HERE)/heldout \
	    --seeds 5 --rounds 500000 --transfer --sampled $(HERE)/heldout-t1 --threads 1 --twice \
	    --also $(HERE)/train-t06 $(HERE)/train-t1 \
	    --run $(HERE)/routing --json $@

$(HERE)/switch_cost.json:
	$(RUN) -m benchmarks.system.switch_cost --dtype float32 --json $@

$(HERE)/catch_up.json:
	$(RUN) -m benchmarks.system.catch_up --dtype float32 --per-category 2 --max-new-tokens 96 --json $@

$(HERE)/trace_speed.json: $(HERE)/train.done
	$(RUN) -m benchmarks.system.trace_speed --dtype float32 --traces $(HERE)/train --json $@

$(HERE)/entropy_threshold.json: $(HERE)/train.done
	$(DRAFTGYM) tune-entropy --traces $(HERE)/train --output $@

# Whenever asked: it takes seconds, and what is shipped must be of these weights.
ship: $(HERE)/routing.json $(HERE)/entropy_threshold.json
	$(RUN) -m benchmarks.routers.ship --routing $< --run $(HERE)/routing --learner ppo --to $(ROUTER)
	cp $(HERE)/entropy_threshold.json policies/routers/entropy_threshold.json

# An assignment of its own, so that a router that is missing stops it.
$(HERE)/clock.json: $(HERE)/routing.json
	routers=$$($(RUN) -m benchmarks.routers.ship --routing $< --run $(HERE)/routing) && \
	$(DRAFTGYM) evaluate --dtype float32 --max-new-tokens 128 --limit-per-category 4 \
	    --policies plain $(RULE) 'ngram:8>eagle3:3x6' eagle3:3x6 dflash:3x6 ngram:8 suffix:16 \
	    ucb-time@eagle3:2,dflash:2,suffix:16,plain $$routers --report $(HERE)/report --json $@

$(HERE)/speed.json: $(HERE)/routing.json | ship
	$(DRAFTGYM) evaluate --against transformers --dtype float32 --limit-per-category 2 \
	    --max-new-tokens 128 --policies $(RULE) 'ngram:8>eagle3:3x6' eagle3:3x6 dflash:3x6 ngram:8 $(ROUTER) --json $@
