"""Acceptance on texts that training never sees: it decides which weights of a run are the best.

Decoding at temperature 0 commits the target's greedy text whatever is drafted, so on a recorded
greedy text the rounds of decoding follow from the drafts alone
(`draftgym.drafters.positions.recorded`). Texts that were sampled follow other rules and are left
out. The held-out prompts stay untouched: weights that were chosen on them would look better there
than they are.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from draftgym.decoding.drafting import Drafter, DraftShape
from draftgym.decoding.model.target import Target
from draftgym.decoding.verify.greedy import GreedyRule
from draftgym.drafters.loading import load_folder
from draftgym.drafters.positions.recorded import RecordedText, rounds_at_each
from draftgym.drafters.training.data.corpus import Corpus, Text
from draftgym.drafters.training.data.features import FeatureCache
from draftgym.drafters.training.loop.progress import SELECTS

TEXTS = 40
"""Most texts that are watched."""
TEXTS_OF_A_SMALL_LM = 10
"""Most texts for a drafter that is a whole language model, which takes far longer."""
RESPONSE_TOKENS = 128
"""Most response tokens of each."""
DEPTH, NODES = 4, 8
"""The chain is DEPTH tokens long, the tree DEPTH deep with NODES tokens in all."""


class Watch:
    """Measures a checkpoint folder on greedy texts.

    Args:
        target: The target.
        features: Where its hidden states come from.
        texts: Its greedy texts, none of which is trained on; the first ones are watched.
    """

    def __init__(self, target: Target, features: FeatureCache, texts: list[Text]) -> None:
        self.target, self.features, self.texts = target, features, texts

    def __call__(self, folder: Path) -> dict[str, float]:
        """Acceptance of the drafter in a folder, over all rounds of all texts.

        Returns:
            `acceptance_length` (what selects: the mean over the draft shapes),
            `chain_acceptance_length` and, of a drafter that reads the target's states, where that
            verifies trees, `tree_acceptance_length`: tokens per round with the target's own.
            `accepted_k`: share of the chain's rounds in which at least k drafted tokens were
            accepted.
        """
        drafter = load_folder(folder, self.target)
        light = bool(drafter.tap_layers)
        texts = self.texts[: TEXTS if light else TEXTS_OF_A_SMALL_LM]
        shapes = watched_shapes(drafter, with_tree=light and self.target.decoder.draws_trees)
        rows = []
        for text in tqdm(texts, "decoding texts set aside", leave=False, disable=None):
            made = rounds_at_each(drafter, self._recorded(drafter, text), [*shapes.values()])
            rows.append([rounds.walked().committed for rounds in made])
        rounds = dict(
            zip(shapes, (np.concatenate(row) for row in zip(*rows, strict=True)), strict=True)
        )
        return summarise_rounds(rounds, shapes["chain"].depth)

    def _recorded(self, drafter: Drafter, text: Text) -> RecordedText:
        """The watched part of a text, with the taps that a drafter reads."""
        stop = text.prompt_length + RESPONSE_TOKENS
        if drafter.tap_layers:
            # The whole text is asked for: that is what the cache already has from validation.
            taps = self.features.batch([text], drafter.tap_layers).taps[0, :stop]
        else:
            taps = torch.empty(min(stop, len(text.tokens)), 0, device=self.target.device)
        tokens = text.tokens[:stop].to(self.target.device)
        return RecordedText(tokens, text.prompt_length, taps, drafter.tap_layers, GreedyRule())


def make_watch(target: Target, features: FeatureCache, corpus: Corpus) -> Watch | None:
    """Watches the greedy texts that a corpus sets aside; None, with a note, if there are none."""
    greedy = [text for text in corpus.validation if text.temperature == 0]
    if not greedy:
        print(
            "note: no greedy text is set aside, so acceptance is not watched: the last weights are "
            "kept, not the best, and --trainer.patience has no effect. Add greedy responses "
            "(draftgym respond --temperatures 0 1) to change that"
        )
        return None
    return Watch(target, features, greedy)


def watched_shapes(drafter: Drafter, with_tree: bool) -> dict[str, DraftShape]:
    """What the watch drafts, by name: a chain, and a tree where asked for and possible."""
    depth = min(DEPTH, drafter.max_draft_length)
    shapes = {"chain": DraftShape(depth)}
    if with_tree and drafter.max_tree_nodes:
        shapes["tree"] = DraftShape(depth, min(NODES, drafter.max_tree_nodes))
    return shapes


def summarise_rounds(rounds: dict[str, NDArray[np.int64]], depth: int) -> dict[str, float]:
    """The figures of `Watch`, from what every round committed.

    Args:
        rounds: Committed tokens of all rounds, by shape; `chain` is among them.
        depth: Length of the chain.
    """
    lengths = {f"{name}_{SELECTS}": float(row.mean()) for name, row in rounds.items()}
    accepted = {
        f"accepted_{k}": float((rounds["chain"] > k).mean())  # the target's own token is counted
        for k in range(1, depth + 1)
    }
    return {SELECTS: float(np.mean(list(lengths.values())))} | lengths | accepted
