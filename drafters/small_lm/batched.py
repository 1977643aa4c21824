"""The small LM at many positions of a text: their chains take each step together.

All drafts lie in one cache behind the text's keys, and a mask tells them apart: a row sees the text
before its anchor, and of the rows behind the text those of its own draft.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from draftgym.decoding.drafting import DraftContext, DraftShape
from draftgym.decoding.model.transformer import NewRows
from draftgym.decoding.verify.proposal import Proposal
from draftgym.decoding.verify.verification import Drafted
from draftgym.drafters.small_lm.drafter import SmallLMDrafter
from draftgym.drafters.tree import grow_chain


@torch.inference_mode()
def small_lm_at_each(
    drafter: SmallLMDrafter,
    context: DraftContext,
    lengths: Sequence[int],
    shapes: Sequence[Sequence[DraftShape]],
) -> list[list[Proposal]]:
    """Proposals of `SmallLMDrafter.propose` at several prefixes of a text.

    Args:
        drafter: The drafter.
        context: The whole text.
        lengths: Committed tokens at each place `[R]`.
        shapes: Per place, what to draft; chains alone.
    """
    longest = max(shape.depth for some in shapes for shape in some)
    anchors = torch.tensor(lengths) - 1
    text = context.tokens[: int(anchors.max()) + 1]
    cache = drafter.decoder.new_cache(len(text) + len(anchors) * longest)
    if len(text) > 1:
        drafter.decoder.encode(NewRows(cache, text[:-1]))
        cache.keep(len(text) - 1)
    before = torch.arange(len(text) - 1) < anchors[:, None]
    own = torch.eye(len(anchors), dtype=torch.bool)
    steps = 0

    def step(drafted: Tensor | None) -> Drafted:
        nonlocal steps
        tokens = text[anchors] if drafted is None else drafted
        visible = torch.cat([before, own.repeat(1, steps + 1)], dim=1)
        rows = NewRows(cache, tokens, anchors + steps, visible)
        logits = drafter.decoder.forward([rows])[0].logits
        cache.keep(len(tokens))
        steps += 1
        return context.rule.draft(logits, (anchors + steps).tolist())

    drawn = grow_chain(longest, step)  # step after step, the places side by side
    tokens, logprobs = (column.view(longest, -1).T for column in (drawn.tokens, drawn.logprobs))
    return [
        [Proposal.chain(tokens[place, : s.depth], logprobs[place, : s.depth]) for s in some]
        for place, some in enumerate(shapes)
    ]
