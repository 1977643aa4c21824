"""The training loop of a drafter: one loop for every objective.

The learning rate follows the share of the budget that is spent, and a resumed run goes on where it
stopped. Now and then the run folder gets a full state (`state.pt`, to resume). Where acceptance is
watched, `checkpoint/` holds the best measured weights and `latest/` those of the state; elsewhere
`checkpoint/` holds the latest. Several processes run the same loop (`team`); one of them measures
and writes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import write_text
from draftgym.decoding.model.device import clock
from draftgym.decoding.model.target import Target
from draftgym.drafters.training.data.corpus import Corpus, Text
from draftgym.drafters.training.data.features import FeatureBatch, FeatureCache
from draftgym.drafters.training.loop.parts import Learned, count_parts, parts_of
from draftgym.drafters.training.loop.progress import (
    SELECTS,
    Progress,
    TrainerConfig,
    learning_rate,
)
from draftgym.drafters.training.loop.state import load_state, save_state
from draftgym.drafters.training.loop.team import ALONE, Team
from draftgym.drafters.training.objectives.objective import Objective, ObjectiveOutput

STATE = "state.pt"
COUNT_EVERY = 10
"""Updates between two whose operations are counted, which costs 0.1 ms an operation. Counting takes
operations apart and so rounds otherwise: when it happens must not depend on interruptions."""

Measure = Callable[[Path], dict[str, float]]
"""Figures of a checkpoint folder by name; `acceptance_length` is among them."""


class Trainer:
    """Drives an objective over a corpus.

    Args:
        objective: What to minimise.
        target: The target whose features it reads.
        corpus: Texts.
        folder: Run folder; resumed when it holds `state.pt`.
        config: Knobs.
        watch: Measures exported weights and so decides which are the best; None keeps the latest.
        features: Where the target's features come from; default: computed at every visit.
        team: The processes that train together.
    """

    def __init__(
        self,
        objective: Objective,
        target: Target,
        corpus: Corpus,
        folder: Path,
        config: TrainerConfig,
        watch: Measure | None = None,
        features: FeatureCache | None = None,
        team: Team = ALONE,
    ) -> None:
        self.objective, self.target, self.corpus = objective, target, corpus
        self.folder, self.config, self.watch = folder, config, watch
        self.features = features or FeatureCache(None, target, ())
        self.team, self.parts = team, count_parts(config, team.size)
        self.device = target.device
        self.peak = matmul_peak(self.device)
        self.progress = Progress()
        self.optimizer = torch.optim.AdamW(
            objective.network.parameters(), lr=config.lr, betas=(0.9, 0.95), weight_decay=0.0
        )
        folder.mkdir(parents=True, exist_ok=True)
        self._metrics = folder / "metrics.jsonl"
        self._resume()
        self.writer = None
        if team.leads:
            self.writer = SummaryWriter(str(folder), purge_step=self.progress.updates)

    @property
    def checkpoint(self) -> Path:
        """Where the best measured weights are exported, or the latest before any measurement."""
        return self.folder / "checkpoint"

    @property
    def latest(self) -> Path:
        """Where the latest weights are exported, if acceptance is watched."""
        return self.folder / "latest"

    def run(self) -> Progress:
        """Trains until the budget is spent or acceptance has not risen for too long.

        Saves on the way, and when interrupted.
        """
        config, progress = self.config, self.progress
        batches = self.corpus.batches(config.batch_size, config.seed, skip=progress.updates)
        saved = progress.seconds
        total = config.updates or round(config.minutes * 60)
        unit = "s" if config.updates is None else " updates"
        hidden = not self.team.leads
        bar = tqdm(
            total=total, initial=self._done(total), unit=unit, desc="training", disable=hidden
        )
        try:
            while True:
                if progress.due(config, watched=self.watch is not None):
                    progress = self.progress = self.team.led(self._measured)
                if progress.spent(config) >= 1 or progress.stopped(config):
                    break
                metrics = self._update(next(batches))
                bar.n = self._done(total)
                bar.set_postfix(metrics)
                if progress.seconds - saved >= config.save_minutes * 60:
                    saved = progress.seconds
                    self.save()
        finally:
            bar.close()
            self.save()
        if progress.spent(config) < 1:
            print(
                f"stopped after update {progress.updates}: {progress.worse} measurements in a row "
                f"were not better than that of update {progress.best_updates}"
            )
        if self.writer is not None:
            self.writer.close()
        return progress

    def _done(self, total: int) -> int:
        return min(total, round(self.progress.spent(self.config) * total))

    def _update(self, texts: Sequence[Text]) -> dict[str, str]:
        """One optimiser step; returns what the progress bar shows."""
        progress = self.progress
        lr = learning_rate(self.config, progress.spent(self.config))
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        counter: Any = FlopCounterMode(display=False)
        counted = progress.updates % COUNT_EVERY == 0
        start = clock(self.device)
        with counter if counted else nullcontext():
            learned = self._learn(texts)
            self._require_finite("loss", learned.loss)
            parameters = self.objective.network.parameters()
            norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.config.clip))
            self._require_finite("gradient", norm)  # before it can spoil the weights
            self.optimizer.step()
        mine = (clock(self.device) - start, counter.get_total_flops() / 1e12)
        times, operations = zip(*self.team.gathered(mine), strict=True)
        seconds, tera_flops = max(times), sum(operations)
        tokens = sum(len(text.tokens) - text.prompt_length for text in texts)
        if not counted:  # as many a token as so far
            tera_flops = progress.tera_flops * tokens / progress.response_tokens
        progress.updates += 1
        progress.seconds += seconds
        progress.response_tokens += tokens
        progress.tera_flops += tera_flops
        if progress.updates % 10 == 0:
            gflops = 1000 * tera_flops / max(seconds, 1e-9)
            self._write(
                {
                    "losses/train": learned.loss,
                    "losses/gradient_norm": norm,
                    "charts/learning_rate": lr,
                    "charts/tokens_per_second": tokens / seconds,
                    "charts/gflops": gflops,
                    "charts/share_of_matmul_peak": gflops / self.peak,
                }
                | {f"objective/{name}": value for name, value in learned.metrics.items()}
                | {f"agreement/train_{k}": x for k, x in enumerate(learned.agreement, 1)}
            )
        return {"loss": f"{learned.loss:.3f}", "top1": f"{learned.agreement[0]:.2f}"}

    def _learn(self, texts: Sequence[Text]) -> Learned:
        """Gradients of a batch, of which this process computes some parts."""
        self.optimizer.zero_grad(set_to_none=True)
        mine = []
        for part in parts_of(texts, self.parts, self.progress.updates, self.team):
            output, _ = self._loss(part.texts, part.seed)
            (part.share * output.loss).backward()
            mine.append(Learned.of(output, part.share))
        self.team.sum_gradients(self.objective.network.parameters())
        return Learned.together([one for some in self.team.gathered(mine) for one in some])

    def _write(self, values: dict[str, float]) -> None:
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(name, value, self.progress.updates)

    def _require_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise DraftgymError(
                f"the {what} became {value} after {self.progress.updates} updates",
                f"lower --trainer.lr; {self.folder} holds the last good state",
            )

    def _loss(self, texts: Sequence[Text], seed: int | None = None) -> tuple[ObjectiveOutput, int]:
        batch, dtype = self._features(texts), self.target.decoder.dtype
        low = dtype == torch.bfloat16
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=low):
            return self.objective(batch, seed), batch.response_tokens

    def _features(self, texts: Sequence[Text]) -> FeatureBatch:
        return self.features.batch(texts, self.objective.tap_layers).to_train()

    def _measured(self) -> Progress:
        """Measures the current weights, keeps them if they are the best, and notes it.

        Everything is saved before, so that a run killed in here comes back to the same weights; and
        the best are exported before the state says so, so that what it says is always there.
        """
        self.save()
        start = clock(self.device)
        progress, known = self.progress, len(self.progress.history)
        validation = self._validate()
        watched = self.watch(self.latest) if self.watch is not None else {}
        if watched and progress.is_better(watched):
            self.objective.export(self.checkpoint, self.target)
        progress.note(validation, watched, self.peak)
        with self._metrics.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(entry) + "\n" for entry in progress.history[known:])
        curve = [x for name, x in validation.items() if name.startswith("agreement")]
        seconds = clock(self.device) - start
        told = f"measured in {seconds:.0f} s: validation loss {validation['loss']:.3f}"
        told += f", top-1 {' '.join(f'{x:.3f}' for x in curve)}"
        if watched:
            best = {"best_updates": progress.best_updates or 0}
            self._write({f"watch/{name}": x for name, x in (watched | best).items()})
            lengths = {name: x for name, x in watched.items() if name.endswith(SELECTS)}
            told += "".join(f"; {n.replace('_', ' ')} {x:.3f}" for n, x in lengths.items())
            told += f"; best {progress.best_value:.3f} at update {progress.best_updates}"
        tqdm.write(f"update {progress.updates}, {told}")
        self._save_state()
        return progress

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """Loss and teacher-forced agreement on the texts set aside."""
        size = self.config.batch_size
        held = sorted(self.corpus.validation, key=lambda text: len(text.tokens))
        groups = [held[i : i + size] for i in range(0, len(held), size)]
        results = [
            self._loss(group) for group in tqdm(groups, "validating", leave=False, disable=None)
        ]
        total = sum(tokens for _, tokens in results)
        rows = [[float(x) for x in (output.loss, *output.agreement)] for output, _ in results]
        shares = [tokens / total for _, tokens in results]
        loss, *agreement = (
            sum(share * x for share, x in zip(shares, column, strict=True))
            for column in zip(*rows, strict=True)
        )
        curve = {f"agreement_{k}": x for k, x in enumerate(agreement, 1)}
        self._write({"losses/validation": loss})
        self._write({name.replace("_", "/validation_"): x for name, x in curve.items()})
        return {"loss": loss} | curve

    def save(self) -> None:
        """Writes the full state and exports the weights; a kill leaves the older ones whole.

        Weights that are exported as the best stay; without any, `checkpoint/` gets the latest.
        Nothing, but for the leader. The others are not asked: they may have ended.
        """
        if not self.team.leads:
            return
        self._save_state()
        if self.watch is not None:
            self.objective.export(self.latest, self.target)
        if self.progress.best_updates is None:
            self.objective.export(self.checkpoint, self.target)

    def _save_state(self) -> None:
        save_state(self.folder / STATE, self.objective, self.optimizer, self.progress)

    def _resume(self) -> None:
        """Goes on where the run stood; all processes start alike."""
        path = self.folder / STATE
        there = path.exists()
        if there:
            self.progress = load_state(path, self.objective, self.optimizer)
        stood = self.team.gathered(self.progress.updates)  # all have read before anybody writes
        if len(set(stood)) > 1:
            raise DraftgymError(
                f"the processes found {self.folder} at updates {stood}",
                "name a --run in a folder that all their machines share",
            )
        self.team.same(self.objective.network.state_dict().values())
        if there and self.team.leads:
            self._tell_resumed()

    def _tell_resumed(self) -> None:
        # A killed run may have told of a measurement that its state does not know.
        lines = [json.dumps(entry) + "\n" for entry in self.progress.history]
        write_text(self._metrics, "".join(lines))
        print(f"resuming {self.folder} at update {self.progress.updates}")


def matmul_peak(device: torch.device, size: int = 1536, repeats: int = 4) -> float:
    """Best rate of a square float32 product on a device here and now, in GFLOP/s."""
    left, right = torch.randn(2, size, size).to(device)
    best = float("inf")
    for _ in range(repeats):
        start = clock(device)
        left @ right
        best = min(best, clock(device) - start)
    return 2 * size**3 / best / 1e9
