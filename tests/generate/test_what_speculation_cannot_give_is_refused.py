"""What speculation cannot give is refused by name, before anything is written."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache
from transformers.generation.streamers import BaseStreamer

from draftgym.decoding.errors import DraftgymError
from draftgym.transformers import generate, speculate
from tests.generate.prompts import GREEDY, PROMPT, padded
from tests.tiny import tiny_model

MODEL = tiny_model()
INNER = torch.ones_like(PROMPT).index_fill(1, torch.tensor([4]), 0)


class Silent(BaseStreamer):
    """Takes anything."""

    def put(self, value: Any) -> None:
        """Nothing."""

    def end(self) -> None:
        """Nothing."""


@pytest.mark.parametrize(
    ("asked", "problem", "remedy"),
    [
        ({"num_beams": 2}, "beam_search", "num_beams=1"),
        ({"output_attentions": True, "return_dict_in_generate": True}, "attentions", "once over"),
        ({"output_hidden_states": True, "return_dict_in_generate": True}, "hidden", "once over"),
        ({"attention_mask": INNER}, "masked elsewhere", "padding_side='left'"),
        ({"attention_mask": INNER.flip(1).sort().values.flip(1)}, "masked", "padding_side"),
        ({"position_ids": torch.arange(3, 15)[None]}, "position_ids", "leave them out"),
        ({**padded(12, 5), "streamer": Silent()}, "streamer", "one prompt"),
        ({**padded(12, 5), "guidance_scale": 1.5}, "guidance", "one prompt"),
    ],
)
def test_with_a_remedy(asked: dict[str, Any], problem: str, remedy: str) -> None:
    given = GREEDY | {"input_ids": PROMPT} | asked
    with pytest.raises(DraftgymError, match=problem) as caught:
        MODEL.generate(**given, custom_generate=speculate(backend="compact"))
    assert remedy in caught.value.remedy


def test_a_model_in_training() -> None:
    model = tiny_model().train()
    with pytest.raises(DraftgymError, match=r"model\.eval"):
        model.generate(PROMPT, **GREEDY, custom_generate=speculate(backend="compact"))


def test_embeddings_in_place_of_ids() -> None:
    embedded = MODEL.get_input_embeddings()(PROMPT)
    with pytest.raises(DraftgymError, match="inputs_embeds"):
        MODEL.generate(inputs_embeds=embedded, custom_generate=speculate(), **GREEDY)


def test_a_text_behind_a_filled_cache() -> None:
    cache = DynamicCache(config=MODEL.config)
    name = "past_key_values"
    with torch.no_grad():
        MODEL(PROMPT[:, :-2], use_cache=True, **{name: cache})
    mask = torch.ones_like(PROMPT)
    loop = speculate(backend="compact")
    asked: dict[str, Any] = GREEDY | {"attention_mask": mask, name: cache}
    with pytest.raises(DraftgymError, match="position_ids"):
        MODEL.generate(PROMPT[:, -2:], **asked, custom_generate=loop)
    whole = MODEL.generate(PROMPT, **asked, custom_generate=loop)  # a cache of the whole is unread
    assert torch.equal(whole, MODEL.generate(PROMPT, **GREEDY))


def test_stop_strings_without_a_tokenizer() -> None:
    with pytest.raises(DraftgymError, match="tokenizer=tokenizer"):
        generate(MODEL, inputs=PROMPT, stop_strings="x", **GREEDY)
