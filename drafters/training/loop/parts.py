"""A batch in parts: what one process computes one after the other, and several side by side.

The loss of a batch is the mean over its parts, each weighing as its response tokens, and what is
drawn in a part depends on the update and on its number. So an update is the same, but for rounding,
whichever processes its parts are computed by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from draftgym.decoding.errors import DraftgymError
from draftgym.drafters.training.data.corpus import Text
from draftgym.drafters.training.loop.progress import TrainerConfig
from draftgym.drafters.training.loop.team import Team
from draftgym.drafters.training.objectives.objective import ObjectiveOutput


class Part(NamedTuple):
    """Some texts of a batch.

    Attributes:
        texts: They.
        share: Of the batch's response tokens, 0 to 1.
        seed: Of what is drawn for them.
    """

    texts: Sequence[Text]
    share: float
    seed: int


@dataclass(frozen=True)
class Learned:
    """What is told of a part, or of a batch.

    Attributes:
        share: Of the batch.
        loss: The loss.
        agreement: Top-1 agreement at each draft position.
        metrics: What else is worth watching.
    """

    share: float
    loss: float
    agreement: list[float]
    metrics: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, output: ObjectiveOutput, share: float) -> Learned:
        """What an objective said of a part."""
        agreement = [float(one) for one in output.agreement]
        return cls(share, float(output.loss.detach()), agreement, output.metrics)

    @classmethod
    def together(cls, parts: Sequence[Learned]) -> Learned:
        """The batch, of its parts."""

        def mean(values: Sequence[float]) -> float:
            return sum(part.share * value for part, value in zip(parts, values, strict=True))

        columns = zip(*(part.agreement for part in parts), strict=True)
        metrics = {name: mean([part.metrics[name] for part in parts]) for name in parts[0].metrics}
        return cls(1.0, mean([part.loss for part in parts]), [mean(x) for x in columns], metrics)


def count_parts(config: TrainerConfig, processes: int) -> int:
    """In how many parts a batch is computed.

    Args:
        config: Knobs of the loop.
        processes: How many compute.

    Raises:
        DraftgymError: They cannot share the parts evenly, or there are more parts than texts.
    """
    parts = processes if config.parts is None else config.parts
    if parts % processes:
        raise DraftgymError(
            f"{processes} processes cannot share batches of {parts} parts (--trainer.parts)",
            f"give a multiple of {processes}, or start fewer processes",
        )
    if parts > config.batch_size:
        raise DraftgymError(
            f"batches of {config.batch_size} texts (--trainer.batch-size) have no {parts} parts",
            f"give at least {parts} texts, which all processes share",
        )
    return parts


def parts_of(texts: Sequence[Text], count: int, updates: int, team: Team) -> list[Part]:
    """The parts of a batch that this process computes.

    Args:
        texts: The batch; the last one of a corpus may have fewer texts than parts.
        count: Parts of a whole batch.
        updates: Updates before this one.
        team: Who computes.
    """
    total = sum(map(_tokens, texts))
    parts = [
        Part(some, sum(map(_tokens, some)) / total, updates * count + number + 1)
        for number in range(team.rank, count, team.size)
        if (some := texts[number::count])
    ]
    return parts


def _tokens(text: Text) -> int:
    return len(text.tokens) - text.prompt_length
