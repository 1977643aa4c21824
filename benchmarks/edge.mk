# Schedulers of many users, trained and compared. `make edge` runs this file (hours).
#
# Interrupted, the same command goes on: training inside a run, everything else result by result
# (delete one to have it made again).
RUN ?= .venv/bin/python
DRAFTGYM ?= .venv/bin/draftgym
HERE := runs/edge
SEEDS := 0 1 2 3 4
USERS := --traces runs/users-heldout --known runs/users
TRAIN = $(RUN) train_scheduler.py --traces runs/users --run $(@D) --threads 1 \
    --cell.users 16 --cell.fewest 4
# Reports of channels are a round old and 3 dB off, users come and go, a draft is waited for 0.6 s.
LATE := --cell.report-rounds-old 1 --cell.report-error-db 3 --cell.leaving 0.2 \
    --cell.deadline 0.6
COMPARE = $(RUN) -m benchmarks.schedulers.comparison $(USERS) --cells 16 --rounds 192 --seeds 5 --json $@

comma := ,
empty :=
space := $(empty) $(empty)
policies = $(addprefix $(HERE)/$(1)-,$(addsuffix /policy,$(SEEDS)))
done = $(addprefix $(HERE)/$(1)-,$(addsuffix /done,$(SEEDS)))
group = $(1)=$(subst $(space),$(comma),$(strip $(call policies,$(1))))

.PHONY: edge
.DELETE_ON_ERROR:
.NOTPARALLEL:
.SECONDARY:

RESULTS := $(addprefix $(HERE)/,exact.json late.json qwen.json tokens.json geometric.json speed.json \
    paper.json live.json)

edge: $(RESULTS)
	$(RUN) -m benchmarks.report $(RESULTS) > $(HERE)/figures.md

$(HERE)/exact-%/done:
	$(TRAIN) --seed $* --rounds 150000
	touch $@

$(HERE)/late-%/done:
	$(TRAIN) --seed $* --rounds 150000 $(LATE)
	touch $@

$(HERE)/exact-tilts-%/done:
	$(TRAIN) --seed $* --rounds 150000 --actions tilts
	touch $@

$(HERE)/late-tilts-%/done:
	$(TRAIN) --seed $* --rounds 150000 $(LATE) --actions tilts
	touch $@

$(HERE)/qwen-%/done:
	$(TRAIN) --seed $* --cell.setting multispin-qwen3.5 --rounds 100000
	touch $@

$(HERE)/lengths-0/done:
	$(TRAIN) --actions lengths --ppo.ent-coef 0.001
	touch $@

$(HERE)/sac-0/done:
	$(TRAIN) --algorithm sac --minutes 6
	touch $@

$(HERE)/shares-0/done:
	$(TRAIN) --algorithm sac --actions shares --minutes 6
	touch $@

$(HERE)/exact.json: $(call done,exact) $(call done,exact-tilts) $(addprefix $(HERE)/,lengths-0/done sac-0/done shares-0/done)
	$(COMPARE) --settings multispin-llama2 --payloads truncated \
	    --policies $(call group,exact) $(call group,exact-tilts) $(foreach one,lengths sac shares,$(one)=$(HERE)/$(one)-0/policy)

$(HERE)/late.json: $(call done,late) $(call done,late-tilts) $(call done,exact)
	$(COMPARE) --settings multispin-llama2 --payloads truncated $(LATE) \
	    --policies $(call group,late) $(call group,late-tilts) $(call group,exact)

$(HERE)/qwen.json: $(call done,qwen)
	$(COMPARE) --settings multispin-qwen3.5 --payloads truncated --policies $(call group,qwen)

$(HERE)/tokens.json: $(call done,exact)
	$(COMPARE) --settings multispin-llama2 --payloads tokens --policies $(call group,exact)

$(HERE)/geometric.json:
	$(RUN) -m benchmarks.schedulers.geometric_error --traces runs/users-heldout --json $@

$(HERE)/speed.json:
	$(RUN) -m benchmarks.schedulers.speed --traces runs/users --json $@

$(HERE)/paper.json:
	$(RUN) -m benchmarks.schedulers.paper --json $@

$(HERE)/live.json: $(HERE)/exact-0/done
	$(RUN) -m benchmarks.schedulers.cells_live --users 4 --arms small:16 ngram:16 --known runs/users \
	    --scheduler fixed heterogeneous@beta $(HERE)/exact-0/policy --json $@
