"""The training loop of a drafter: one loop for every objective.

The budget is wall-clock minutes, because that is what a laptop's owner has; the learning rate
follows the share of the budget that is spent, and a resumed run goes on where it stopped. Every few
minutes the run folder gets a full state (`state.pt`, to resume) and the weights as a checkpoint
folder (`checkpoint/`, to use).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from decoding.errors import DraftgymError
from decoding.target import Target
from drafters.training.corpus import Corpus, Text
from drafters.training.features import FeatureCache
from drafters.training.objective import Objective
from drafters.training.throughput import count_flops, matmul_peak

Measure = Callable[[Path], dict[str, float]]
"""Live measurement of a checkpoint folder: metric name to value."""


@dataclass(frozen=True)
class TrainerConfig:
    """Knobs of the loop.

    Attributes:
        minutes: Training budget, over all resumed sessions.
        batch_size: Texts per update.
        lr: Peak learning rate.
        warmup: Share of the budget with a rising learning rate.
        clip: Largest gradient norm.
        save_minutes: Minutes between saves.
        measure_minutes: Minutes between validations (agreement on texts set aside, acceptance in
            decoding held-out prompts); 0 for none but the last.
        seed: Seed of the batch order.
    """

    minutes: float = 45.0
    batch_size: int = 4
    lr: float = 1e-3
    warmup: float = 0.03
    clip: float = 0.5
    save_minutes: float = 4.0
    measure_minutes: float = 10.0
    seed: int = 0


@dataclass
class Progress:
    """Where a run stands; saved and restored."""

    updates: int = 0
    seconds: float = 0.0
    response_tokens: int = 0
    tera_flops: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)


def learning_rate(config: TrainerConfig, spent: float) -> float:
    """Linear warm-up, then cosine to a twentieth of the peak.

    Args:
        config: Peak and warm-up share.
        spent: Share of the budget that is used, 0 to 1.
    """
    if spent < config.warmup:
        return config.lr * (0.05 + 0.95 * spent / config.warmup)
    phase = min(1.0, (spent - config.warmup) / (1 - config.warmup))
    return config.lr * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * phase)))


class Trainer:
    """Drives an objective over a corpus.

    Args:
        objective: What to minimise.
        target: The target whose features it reads.
        corpus: Texts.
        folder: Run folder; resumed when it holds `state.pt`.
        config: Knobs.
        measure: Live measurement of a checkpoint on held-out prompts.
        features: Where the target's features come from; default: computed at every visit.
    """

    def __init__(
        self,
        objective: Objective[Any],
        target: Target,
        corpus: Corpus,
        folder: Path,
        config: TrainerConfig,
        measure: Measure | None = None,
        features: FeatureCache | None = None,
    ) -> None:
        self.objective, self.target, self.corpus = objective, target, corpus
        self.folder, self.config, self.measure = folder, config, measure
        self.features = features or FeatureCache(None, target, ())
        self.peak = matmul_peak()
        self.progress = Progress()
        self.optimizer = torch.optim.AdamW(
            objective.network.parameters(), lr=config.lr, betas=(0.9, 0.95), weight_decay=0.0
        )
        folder.mkdir(parents=True, exist_ok=True)
        self._resume()
        self.writer = SummaryWriter(str(folder), purge_step=self.progress.updates)

    @property
    def checkpoint(self) -> Path:
        """Where the weights are exported."""
        return self.folder / "checkpoint"

    def run(self) -> Progress:
        """Trains until the budget is spent; saves on the way, and when interrupted."""
        config, progress = self.config, self.progress
        batches = self.corpus.batches(config.batch_size, config.seed, skip=progress.updates)
        budget = config.minutes * 60
        saved = measured = progress.seconds
        bar = tqdm(total=round(budget), initial=round(progress.seconds), unit="s", desc="training")
        try:
            while progress.seconds < budget:
                metrics = self._update(next(batches))
                bar.n = min(round(progress.seconds), round(budget))
                bar.set_postfix(metrics)
                if progress.seconds - saved >= config.save_minutes * 60:
                    saved = progress.seconds
                    self.save()
                if 0 < config.measure_minutes * 60 <= progress.seconds - measured:
                    measured = progress.seconds
                    self._validate()
                    self._measure()
        finally:
            bar.close()
            self.save()
        self._validate()
        self._measure()
        self.save()
        self.writer.close()
        return progress

    def _update(self, texts: Sequence[Text]) -> dict[str, str]:
        """One optimiser step; returns what the progress bar shows."""
        progress = self.progress
        lr = learning_rate(self.config, progress.seconds / (self.config.minutes * 60))
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        with count_flops() as rate:
            loss, agreement, tokens = self._loss(texts, seed=progress.updates + 1)
            value = float(loss.detach())
            self._require_finite("loss", value)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            parameters = self.objective.network.parameters()
            norm = torch.nn.utils.clip_grad_norm_(parameters, self.config.clip)
            self._require_finite("gradient", float(norm))  # before it can spoil the weights
            self.optimizer.step()
        progress.updates += 1
        progress.seconds += rate.seconds
        progress.response_tokens += tokens
        progress.tera_flops += rate.flops / 1e12
        if progress.updates % 10 == 0:
            self._write_scalars(
                {
                    "losses/train": value,
                    "losses/gradient_norm": float(norm),
                    "charts/learning_rate": lr,
                    "charts/tokens_per_second": tokens / rate.seconds,
                    "charts/gflops": rate.gflops,
                    "charts/share_of_matmul_peak": rate.gflops / self.peak,
                }
            )
            self._write_positions("agreement/train", agreement)
        return {"loss": f"{value:.3f}", "top1": f"{agreement[0]:.2f}"}

    def _write_scalars(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, self.progress.updates)

    def _require_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise DraftgymError(
                f"the {what} became {value} after {self.progress.updates} updates",
                f"lower --trainer.lr; {self.folder} holds the last good state",
            )

    def _loss(
        self, texts: Sequence[Text], seed: int | None = None
    ) -> tuple[Tensor, list[float], int]:
        batch = self.features.batch(texts, self.objective.tap_layers)
        low = self.target.decoder.dtype == torch.bfloat16
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
            output = self.objective(batch, seed)
        return output.loss, [float(x) for x in output.agreement], batch.response_tokens

    @torch.no_grad()
    def _validate(self) -> None:
        """Loss and teacher-forced agreement on the texts set aside."""
        size = self.config.batch_size
        held = sorted(self.corpus.validation, key=lambda text: len(text.tokens))
        results = [self._loss(held[i : i + size]) for i in range(0, len(held), size)]
        total = sum(tokens for _, _, tokens in results)
        loss = sum(float(loss) * tokens for loss, _, tokens in results) / total
        columns = zip(*(row for _, row, _ in results), strict=True)
        weights = [tokens / total for _, _, tokens in results]
        agreement = [sum(w * x for w, x in zip(weights, column, strict=True)) for column in columns]
        self.writer.add_scalar("losses/validation", loss, self.progress.updates)
        self._write_positions("agreement/validation", agreement)
        entry = {"loss": loss} | {f"agreement_{i + 1}": x for i, x in enumerate(agreement)}
        self._record(entry)
        shown = " ".join(f"{x:.3f}" for x in agreement)
        tqdm.write(f"update {self.progress.updates}: validation loss {loss:.3f}, top-1 {shown}")

    def _measure(self) -> None:
        """Acceptance in real decoding of held-out prompts."""
        if self.measure is None:
            return
        self.save()
        values = self.measure(self.checkpoint)
        for name, value in values.items():
            self.writer.add_scalar(f"heldout/{name}", value, self.progress.updates)
        self._record(values)
        shown = ", ".join(f"{name} {value:.2f}" for name, value in values.items())
        tqdm.write(f"update {self.progress.updates}: held-out {shown}")

    def _write_positions(self, tag: str, values: Sequence[float]) -> None:
        for position, value in enumerate(values, start=1):
            self.writer.add_scalar(f"{tag}_{position}", value, self.progress.updates)

    def _record(self, entry: dict[str, float]) -> None:
        progress = self.progress
        where = {
            "updates": progress.updates,
            "minutes": round(progress.seconds / 60, 2),
            "response_tokens": progress.response_tokens,
            "tokens_per_second": round(progress.response_tokens / max(progress.seconds, 1e-9), 1),
            "gflops": round(1000 * progress.tera_flops / max(progress.seconds, 1e-9), 1),
            "matmul_peak_gflops": round(self.peak, 1),
        }
        progress.history.append(where | entry)
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(where | entry) + "\n")

    def save(self) -> None:
        """Writes the full state and the checkpoint folder; a kill leaves the older ones whole."""
        state = {
            "network": self.objective.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": asdict(self.progress),
        }
        partial = self.folder / "state.pt.partial"
        torch.save(state, partial)
        partial.replace(self.folder / "state.pt")
        self.objective.export(self.checkpoint, self.target)

    def _resume(self) -> None:
        path = self.folder / "state.pt"
        if not path.exists():
            return
        try:
            state: dict[str, Any] = torch.load(path, weights_only=True)
            self.objective.network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.progress = Progress(**state["progress"])
        except Exception as error:  # torch raises many kinds for a damaged file
            raise DraftgymError(
                f"cannot resume from {path}: {(str(error) or repr(error)).splitlines()[0]}",
                "it is damaged or of other settings; name another --run, or delete that folder",
            ) from error
        print(f"resuming {self.folder} at update {self.progress.updates}")
