"""VSD's expectation-maximisation as one objective (`vsd_terms` has the terms)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from draftgym.decoding.drafting import DraftShape
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.device import to_host
from draftgym.decoding.model.target import Target
from draftgym.decoding.verify.rejection import RejectionRule
from draftgym.drafters.positions.recorded import RecordedText
from draftgym.drafters.training.data.features import FeatureBatch
from draftgym.drafters.training.objectives import vsd_terms as vsd
from draftgym.drafters.training.objectives.losses import Loss, Scored
from draftgym.drafters.training.objectives.objective import ObjectiveOutput, RecordedObjective
from draftgym.drafters.training.objectives.paths import VerifiedPaths, draw_paths, verify_paths
from draftgym.drafters.training.objectives.unroll import Unroller, pick_anchors

Weighting = Literal["adaptive", "posterior", "uniform"]
WEIGHTS = {
    "adaptive": vsd.adaptive_weights,
    "posterior": vsd.posterior_weights,
    "uniform": vsd.uniform_weights,
}


@dataclass(frozen=True)
class VSDSettings:
    """The E-step and the terms of the M-step; every term can be switched off."""

    paths: int = 4
    """Chains that are drawn from the drafter behind each anchor."""
    tree_nodes: int = 8
    """Nodes of the drafter's tree, whose paths join the chains; 0 for none."""
    depth: int = 4
    """Tokens on a path."""
    anchors: int = 24
    """Random anchors per text."""
    texts: int = 1
    """Texts of each batch that get an E-step; all of them anchor it."""
    temperature: float = 1.0
    """Verification that is trained for: 0 (greedy) or 1 (speculative sampling)."""
    oracle_filter: bool = True
    """A token counts with the chance that verification keeps it."""
    whole_path: bool = False
    """Worth of a path: the chance to keep all of it, instead of the expected length."""
    weighting: Weighting = "adaptive"
    """Weights of paths: posterior, flattened as needed (adaptive); as it is; or all equal."""
    likelihood: float = 0.2
    """Strength of the weighted likelihood. It rests on few anchors and so is noisier than the
    anchor term, which rests on all: 1 was worse than plain training."""
    confidence: float = 0.2
    """Strength of the confidence-aware regulariser; 0 for none."""
    anchor: float = 1.0
    """Strength of the original objective on the recorded text; 0 for none."""


class VSDObjective(RecordedObjective):
    """Weighted likelihood of verified draft paths, with a regulariser and an anchor.

    Args:
        unroller: The drafter in training.
        target: The target, which verifies.
        anchor_loss: The original objective.
        settings: Terms and sizes.
        anchors: Random anchors per text of the original objective; None takes all.

    Raises:
        DraftgymError: The target cannot verify trees.
    """

    def __init__(
        self,
        unroller: Unroller[Any],
        target: Target,
        anchor_loss: Loss,
        settings: VSDSettings,
        anchors: int | None = None,
    ) -> None:
        super().__init__(unroller, anchor_loss, anchors)
        if not target.decoder.draws_trees:
            raise DraftgymError(
                f"vsd verifies trees, and target {target.name!r} verifies chains only",
                "train with another --objective, such as lk",
            )
        self.target, self.settings, self.drafter = target, settings, unroller.drafter()

    def __call__(self, batch: FeatureBatch, seed: int | None = None) -> ObjectiveOutput:
        """Loss of one batch; without a seed (validation) that of the recorded text alone."""
        output = super().__call__(batch, seed)
        if seed is None:
            return output
        loss, metrics = self.settings.anchor * output.loss, dict[str, float]()
        for row in range(min(self.settings.texts, len(batch.tokens))):
            picked = (seed + row) % len(batch.tokens)
            gain, metrics = self.path_loss(batch.only(picked), seed)
            loss = loss + gain / self.settings.texts
        return ObjectiveOutput(loss, output.agreement, metrics)

    def path_loss(self, batch: FeatureBatch, seed: int) -> tuple[Tensor, dict[str, float]]:
        """E-step on one text, then the M-step's loss, the mean over its anchors; and `judge`."""
        anchors, valid = pick_anchors(batch, self.settings.anchors, seed)
        anchors = anchors[valid].sort().values
        with self.unroller.drafting():
            paths = self.expectation(batch, to_host(anchors).tolist(), seed)
        scored = self._score(batch, anchors, paths, seed)
        judgement = judge(paths, self.settings)
        loss = maximisation_loss(scored, paths, judgement, self.settings).mean()
        return loss, judgement.metrics(paths)

    def expectation(self, batch: FeatureBatch, anchors: list[int], seed: int) -> VerifiedPaths:
        """Draws and verifies paths behind the anchors of one text."""
        settings = self.settings
        tokens = batch.tokens[0, : int(batch.lengths[0])]
        rule = RejectionRule(1.0, seed, self.target.vocab_size)  # chains are drawn from q itself
        taps = batch.taps[0].to(self.network.fc.weight.dtype)
        text = RecordedText(tokens, int(batch.prompt_lengths[0]), taps, self.tap_layers, rule)
        depth = min(settings.depth, self.unroller.depth)
        tree = DraftShape(depth, settings.tree_nodes) if settings.tree_nodes else None
        found = draw_paths(self.drafter, text, anchors, settings.paths, depth, tree)
        (read,) = batch.texts or (None,)
        return verify_paths(self.target, tokens, anchors, found, read)

    def _score(
        self, batch: FeatureBatch, anchors: Tensor, paths: VerifiedPaths, seed: int
    ) -> Scored:
        """Runs the drafter along the paths, with a gradient; rows are (anchor, path)."""
        count = paths.tokens.shape[1]
        rows = anchors.repeat_interleave(count)[None]
        tokens = paths.tokens.flatten(0, 1)
        outputs = self.unroller.outputs(batch, rows, tokens[None])[0]
        hidden, real = paths.hidden.flatten(0, 1), paths.real.flatten(0, 1)
        return self.unroller.score(outputs, hidden, tokens, real, tokens, seed)


@dataclass(frozen=True)
class Judgement:
    """What the E-step says of A anchors with P paths of K tokens each.

    Attributes:
        worth: Utility of each path `[A, P]`.
        weights: Of the paths `[A, P]`.
        kept: How much of each token verification leaves `[A, P, K]`.
        log_p: Log-probability of each path under the target `[A, P]`; -inf where there is none.
        log_q: The same under the drafter.
    """

    worth: Tensor
    weights: Tensor
    kept: Tensor
    log_p: Tensor
    log_q: Tensor

    def metrics(self, paths: VerifiedPaths) -> dict[str, float]:
        """Bound and marginal over the paths that were found, and what these are worth."""
        q = vsd.tempered(self.log_q, torch.ones_like(self.log_q[:, 0]))
        there = self.worth > 0
        q = q * there / (q * there).sum(-1, keepdim=True).clamp(min=1e-9)
        logs = (q.clamp(min=1e-9).log(), self.log_p, self.worth.log())
        bounds = vsd.bound(q, *(torch.where(there, log, 0.0) for log in logs))
        marginal = (self.log_p.exp() * self.worth).sum(-1)
        some = there.any(-1)
        return {
            "bound": float(bounds[some].mean()),
            "log_marginal": float(marginal[some].log().mean()),
            "expected_length": float((q * self.worth).sum(-1).mean()),
            "paths": float(paths.real[..., 0].sum(-1).float().mean()),
            "effective_paths": float(vsd.effective_paths(self.weights).mean()),
        }


def judge(paths: VerifiedPaths, settings: VSDSettings) -> Judgement:
    """Filter, utility and weights of verified paths."""
    chances = vsd.keep_chances(paths.log_p, paths.log_q, paths.best, settings.temperature)
    worth = vsd.utility(chances, paths.real, settings.whole_path)
    none = ~paths.real[..., 0]
    worth = worth.masked_fill(none, 0.0)
    log_p, log_q = (log.sum(-1).masked_fill(none, -torch.inf) for log in (paths.log_p, paths.log_q))
    weights = WEIGHTS[settings.weighting](log_p, worth)
    kept = vsd.reach(chances, paths.real, settings.oracle_filter)
    return Judgement(worth, weights, kept, log_p, log_q)


def maximisation_loss(
    scored: Scored, paths: VerifiedPaths, judgement: Judgement, settings: VSDSettings
) -> Tensor:
    """The M-step's loss of each anchor `[A]`.

    Args:
        scored: The drafter along the paths, rows (anchor, path).
        paths: What the E-step found.
        judgement: What it says of them.
        settings: Which terms, how strong.
    """
    shape, weights, kept = paths.tokens.shape, judgement.weights, judgement.kept
    gain = vsd.weighted_likelihood(scored.log_q.view(shape), kept, weights)
    loss = -settings.likelihood * gain
    if settings.confidence:
        divergence = (scored.cross_entropy - scored.entropy).view(shape)
        sure, arrived = scored.confidence.view(shape), vsd.arrival(kept, paths.real)
        penalty = vsd.confidence_penalty(divergence, sure, arrived, weights)
        loss = loss + settings.confidence * penalty
    return loss
