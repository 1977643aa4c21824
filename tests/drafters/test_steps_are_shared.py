"""Chains and trees that are drawn together are those drawn alone, and no node runs twice."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from draftgym.decoding.drafting import DraftShape
from draftgym.decoding.model.compact.layers import Sight, additive_mask, attend
from draftgym.decoding.verify.base import Candidates
from draftgym.decoding.verify.proposal import Proposal
from draftgym.drafters.positions.forest import Forest, Step
from draftgym.drafters.positions.paths import Paths
from draftgym.drafters.tree import children_per_node
from tests.drafters.test_draft_trees import Path, Table

COLUMNS = [DraftShape(4), DraftShape(3, 6), DraftShape(4, 8), DraftShape(5, 20), DraftShape(2, 3)]


class Places:
    """Tables of several places, drawn together; remembers which paths were run."""

    def __init__(self, count: int, sharpness: float) -> None:
        self.tables = [Table(seed, 30, sharpness) for seed in range(count)]
        self.rows: list[tuple[int, Path]] = [(place, ()) for place in range(count)]
        self.steps: list[int] = []

    def candidates(self, rows: Sequence[tuple[int, Path]], count: int) -> Candidates:
        """Candidates after paths of places."""
        found = [self.tables[place].candidates([path], count) for place, path in rows]
        columns = zip(*((c.tokens, c.logprobs, c.scores) for c in found), strict=True)
        return Candidates(*map(torch.cat, columns))

    def draw(self, columns: Sequence[Sequence[DraftShape]]) -> list[list[Proposal]]:
        """What every column draws at every place."""
        count = max(children_per_node(some[0].budget) for some in columns)

        def run(step: Step) -> Candidates:
            self.steps.append(len(step.tokens))
            new = []
            for token, parent, place in zip(step.tokens, step.parents, step.places, strict=True):
                assert self.rows[parent][0] == place
                new.append((int(place), (*self.rows[parent][1], int(token))))
            for path, (_, node), depth in zip(step.paths, new, step.depths, strict=True):
                seen = [
                    self.rows[row][1] if row < len(self.rows) else node for row in path if row >= 0
                ]
                assert sorted(seen, key=len) == [node[:n] for n in range(depth + 1)]
            self.rows += new
            return self.candidates(new, count)

        forest = Forest(self.candidates(self.rows, count), run)
        wanted = [
            forest.trees(some) if some[0].is_tree else forest.chains([one.depth for one in some])
            for some in columns
        ]
        return forest.grow(wanted)


@pytest.mark.parametrize("sharpness", [0.5, 2.0, 6.0])
def test_what_is_drawn_together_is_what_each_draws_alone(sharpness: float) -> None:
    rooms = [9, 9, 3, 2, 1]  # the last places of a text have less room
    columns = [[shape.cut(room) for room in rooms] for shape in COLUMNS]
    places = Places(len(rooms), sharpness)
    together = places.draw(columns)
    alone = 0
    for some, drawn in zip(columns, together, strict=True):
        for table, shape, proposal in zip(places.tables, some, drawn, strict=True):
            if shape.is_tree:
                expected = table.grow(shape, count=children_per_node(shape.budget))
                alone += len(table.expanded)
                assert proposal.parents.tolist() == expected.parents.tolist()
                assert proposal.logprobs.tolist() == expected.logprobs.tolist()
                assert proposal.tokens.tolist() == expected.tokens.tolist()
            else:
                path: Path = ()
                for _ in range(shape.depth):
                    path = (*path, int(table.row(path).argmax()))
                alone += shape.depth - 1
                assert tuple(proposal.tokens.tolist()) == path and proposal.is_chain
    assert len(set(places.rows)) == len(places.rows), "a node ran twice"
    assert sum(places.steps) < 0.8 * alone


def test_a_path_is_seen_as_by_a_mask() -> None:
    made = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(n, h, 8, generator=made) for n, h in ((5, 6), (17, 2), (17, 2)))
    drafted = torch.tensor([[0, -1, -1], [1, 0, -1], [2, -1, -1], [3, 1, 0], [4, 2, -1]])
    paths = Paths(12, torch.tensor([12, 3, 1, 7, 5]), drafted)
    keys, values = k.transpose(0, 1), v.transpose(0, 1)
    mask = additive_mask(paths.mask(17), 17, torch.float32)
    expected = attend(q, keys, values, Sight(0, mask))
    torch.testing.assert_close(paths.attend(q, keys, values), expected)
