# Drafters trained from nothing but their target: prompts, responses, three trainings, a comparison.
# `make drafters` runs this file; docs/guides/drafters.md says what to set for an hour of one GPU.
#
# Interrupted, the same command goes on inside each step: texts that are written are not written
# again, and trainings go on from their last save.
RUN ?= .venv/bin/python
DRAFTGYM ?= .venv/bin/draftgym
TARGET ?= smollm2-135m
DEVICE ?= auto
TEXTS ?= 2000
MINUTES ?= 30
BATCH ?= 6
RATE ?= 5e-4
# To go on from: any folder of checkpoints named <drafter>-<target>; nothing starts fresh.
FROM ?= checkpoints
HERE := runs/drafters
WHERE := --target $(TARGET) --device $(DEVICE)
TRAIN = $(DRAFTGYM) train-drafter $* $(WHERE) --corpus $(HERE)/responses --features $(HERE)/features \
    --skip-long-prompts --run $(HERE)/$* --trainer.minutes $(MINUTES) --trainer.batch-size $(BATCH) \
    --trainer.lr $(RATE)
INIT = $(wildcard $(FROM)/$*-$(notdir $(TARGET)))
KINDS := eagle3 dflash small-lm

.PHONY: drafters
.NOTPARALLEL:

drafters: $(HERE)/eagle3.json $(HERE)/dflash.json $(HERE)/small-lm.done

$(HERE)/asked.done:
	$(DRAFTGYM) ask $(WHERE) --texts $(TEXTS) --out $(HERE)/asked
	touch $@

$(HERE)/responses.done: $(HERE)/asked.done
	$(DRAFTGYM) respond $(WHERE) --prompts $(HERE)/asked/prompts.jsonl --out $(HERE)/responses \
	    --temperatures 0 0.6 1 --skip-long-prompts
	touch $@

$(addprefix $(HERE)/,$(addsuffix .done,$(KINDS))): $(HERE)/%.done: $(HERE)/responses.done
	$(TRAIN) $(if $(INIT),--init $(INIT))
	touch $@

# On the shipped training prompts: what decides whether new weights replace those that are shipped.
$(HERE)/%.json: $(HERE)/%.done
	$(RUN) -m benchmarks.drafters.objectives --target $(TARGET) --device $(DEVICE) --prompts train \
	    --limit-per-category 20 --shapes 4 3x6 --baseline $(if $(INIT),shipped,new) \
	    --checkpoints $(if $(INIT),shipped=$(INIT)) new=$(HERE)/$*/latest \
	    --texts $(HERE)/texts --json $@
