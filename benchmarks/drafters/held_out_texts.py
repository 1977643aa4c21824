"""Texts that the target writes once, kept with its hidden states, for measuring many drafters.

A folder holds the responses (`draftgym.rollouts.responses.respond`) and, in `features/`, the
target's taps and hidden states in its own dtype, so that drafters see just what they would see in
decoding. Neither depends on any drafter. The folder may be deleted at any time; it is written
again, token for token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.decoding.verify.rules import make_rule
from draftgym.drafters.positions.recorded import RecordedText
from draftgym.drafters.training.data.corpus import Text
from draftgym.drafters.training.data.features import FeatureCache
from draftgym.rollouts.prompts.sets import load_prompts
from draftgym.rollouts.responses.respond import RespondArgs, respond
from draftgym.rollouts.traces.shards import shards_in

TOGETHER = 16
"""Texts that share a pass of the target."""


@dataclass(frozen=True)
class HeldOutText:
    """A text of the target, m response tokens.

    Attributes:
        question_id: Which prompt.
        category: Its category.
        temperature: At which it was sampled; 0 is greedy.
        seed: Of its (coupled) noise.
        text: Prompt and response.
    """

    question_id: str
    category: str
    temperature: float
    seed: int
    text: Text

    @property
    def decoded(self) -> int:
        """Tokens that rounds have to write: all but the first, m - 1."""
        return len(self.text.tokens) - self.text.prompt_length - 1


def write_texts(args: RespondArgs, target: Target) -> list[HeldOutText]:
    """What the target says to some prompts; only what the folder lacks is written now.

    Args:
        args: Prompts, folder and settings.
        target: The target that they name.

    Returns:
        Prompt by prompt in the order of their file, each at every temperature. Prompts that are
        answered with a single token at some temperature leave no round to measure and are left out.

    Raises:
        DraftgymError: The folder holds texts of another target or of other settings, or no text
            has a round.
    """
    import pyarrow.parquet as parquet

    try:
        respond(args, target)
    except DraftgymError as error:  # its remedies name the option of `draftgym respond`
        raise DraftgymError(error.problem, error.remedy.replace("--out", "--texts")) from error
    found = {}
    for shard in shards_in(args.out):
        for row in parquet.read_table(shard).to_pylist():
            tokens = torch.tensor(row["prompt"] + row["response"], dtype=torch.long)
            text = Text(tokens, len(row["prompt"]))
            facts = (row["id"], row["category"], row["temperature"], row["seed"])
            found[row["id"], row["temperature"]] = HeldOutText(*facts, text)
    texts = []
    for prompt in load_prompts(args.prompts, limit_per_category=args.limit_per_category):
        mine = [found.get((prompt.question_id, one)) for one in args.temperatures]
        if all(text is not None and text.decoded > 0 for text in mine):
            texts += [text for text in mine if text is not None]
    if not texts:
        raise DraftgymError(
            f"no text of {args.prompts} has two tokens at every temperature",
            "raise --max-new-tokens, or name other prompts",
        )
    return texts


class Recordings:
    """Held-out texts as drafters see them.

    Args:
        folder: Where features are kept.
        target: Who wrote the texts.
        texts: The texts.
        layers: Layers that any of the drafters taps.
        max_new_tokens: Tokens that each text could have had.
    """

    def __init__(
        self,
        folder: Path,
        target: Target,
        texts: Sequence[HeldOutText],
        layers: set[int],
        max_new_tokens: int,
    ) -> None:
        self.target, self.texts, self.max_new_tokens = target, texts, max_new_tokens
        self.features = FeatureCache(
            folder / "features", target, layers, stored=target.precision.torch_dtype
        )
        self._logprobs: dict[int, Tensor] = {}

    def __iter__(self) -> Iterator[HeldOutText]:
        return iter(self.texts)

    def prepare(self) -> None:
        """Lets the target read what was never read before, many texts in a pass.

        Likelihoods of sampled texts are made here, too: they are the same for every drafter.
        """
        groups = range(0, len(self.texts), TOGETHER)
        for start in tqdm(groups, desc="target's features", unit="batch", mininterval=5):
            group = self.texts[start : start + TOGETHER]
            batch = self.features.batch([one.text for one in group], tuple(self.features.layers))
            for row, one in enumerate(group):
                if one.temperature > 0:
                    hidden = batch.hidden[row, : len(one.text.tokens)]
                    self._logprobs[id(one)] = self._likelihood(one, hidden)

    def recorded(self, one: HeldOutText, tap_layers: tuple[int, ...]) -> RecordedText:
        """A text under its own rule for a drafter with these taps."""
        taps = self.features.batch([one.text], tap_layers).taps[0]
        rule = make_rule(None, one.temperature, one.seed, self.target.vocab_size)
        tokens, first = one.text.tokens, one.text.prompt_length
        return RecordedText(tokens, first, taps, tap_layers, rule, self.max_new_tokens)

    def logprobs(self, one: HeldOutText) -> Tensor:
        """The target's log-probability of a sampled text's tokens but the first `[m - 1]`."""
        return self._logprobs[id(one)]

    def _likelihood(self, one: HeldOutText, hidden: Tensor) -> Tensor:
        first = one.text.prompt_length
        logits = self.target.decoder.logits(hidden[first:-1]) / one.temperature
        tokens = one.text.tokens[first + 1 :, None]
        return logits.log_softmax(-1).gather(-1, tokens)[:, 0]
