"""A server with a tiny model on a port of this machine, and what transformers says of the model."""

from __future__ import annotations

import string
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers.convert_slow_tokenizer import bytes_to_unicode

from draftgym.decoding.model.target import Target, wrap_model
from draftgym.drafters.ngram.drafter import NgramDrafter
from draftgym.serving.batching.batcher import Batcher, BatchSettings
from draftgym.serving.batching.policy_set import PolicySet
from draftgym.serving.batching.requests import TextRequest
from draftgym.serving.http.app import make_app
from draftgym.serving.http.encoding import Encoding
from draftgym.serving.http.service import Limits, Model, Service
from tests.serving.scripted import running
from tests.tiny import ONE_THREAD, tiny_eagle3, tiny_model
from tests.tiny_text import VOCAB, byte_tokenizer

NAME = "tiny-text"
PATIENCE = 120.0  # seconds; a client that waits so long has failed
TEMPLATE = "{% for one in messages %}<{{ one.role }}> {{ one.content }}\n{% endfor %}<assistant>"
POLICIES = {"ngram:4": "ngram:4", "eagle3:3": "eagle3:3", "plain": "plain"}


@dataclass(frozen=True)
class Tiny:
    """A tiny model that chats, random as it is.

    Attributes:
        model: As transformers has it.
        tokenizer: Its tokenizer: a byte is a token.
        folder: Both, saved.
    """

    model: Any
    tokenizer: Any
    folder: Path

    def target(self) -> Target:
        """The target, in memory."""
        return wrap_model(self.model, self.tokenizer, NAME, ONE_THREAD)

    def ids(self, text: str) -> list[int]:
        """Its tokens."""
        return list(self.tokenizer(text).input_ids)

    def ids_of_bytes(self, data: Sequence[int]) -> list[int]:
        """The tokens of bytes, whether or not they are text."""
        letters = bytes_to_unicode()
        return list(self.tokenizer.convert_tokens_to_ids([letters[byte] for byte in data]))

    def chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """The tokens of a chat that is to be answered."""
        told = self.tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=False
        )
        return self.ids(told)

    def greedy(self, prompt: Sequence[int], new_tokens: int, runs_on: bool = False) -> str:
        """What transformers' own `generate` writes, to the last token if it `runs_on`."""
        ids = torch.tensor([list(prompt)])
        ends = {"eos_token_id": -1} if runs_on else {}
        written = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            do_sample=False,
            **ends,
        )
        return str(self.tokenizer.decode(written[0, len(prompt) :], skip_special_tokens=True))

    def logprobs(self, ids: Sequence[int]) -> list[float]:
        """How likely transformers finds each token but the first."""
        with torch.no_grad():
            logits = self.model(torch.tensor([list(ids)])).logits[0, :-1].log_softmax(-1)
        return logits[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].tolist()


def make_tiny(folder: Path) -> Tiny:
    """The model, saved where clients that read tokenizers find it."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.eos_token = "<end>"
    end = tokenizer.eos_token_id
    model = tiny_model(vocab_size=VOCAB, max_position_embeddings=2048, eos_token_id=end)
    letters = set(tokenizer.convert_tokens_to_ids(list(string.ascii_letters + ",.")))
    with torch.no_grad():  # what it writes can be read, most of the time
        model.lm_head.weight[[one for one in range(VOCAB) if one not in letters]] = 0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Tiny(model, tokenizer, folder)


@dataclass(frozen=True)
class Served:
    """A server that runs.

    Attributes:
        address: Where.
        service: What it knows.
        batcher: Who writes.
        tiny: The model.
        load: Lets a server serve that was started without its model.
    """

    address: str
    service: Service
    batcher: Batcher
    tiny: Tiny
    load: Callable[[], None]

    @property
    def v1(self) -> str:
        """The base of OpenAI's endpoints."""
        return f"{self.address}/v1"

    @contextmanager
    def busy(self, waiting: int = 0) -> Iterator[threading.Event]:
        """Within, nothing is written and so many texts wait, until the event is set."""
        release = threading.Event()
        request = TextRequest(torch.tensor([1]), 1)
        reached = threading.Event()

        def hold(event: object) -> None:
            reached.set()
            assert release.wait(PATIENCE)

        try:
            self.batcher.submit(request, hold)
            assert reached.wait(PATIENCE)
            for _ in range(waiting):
                self.batcher.submit(request, lambda event: None)
            yield release
        finally:
            release.set()


@contextmanager
def serve(
    tiny: Tiny, limits: Limits | None = None, loaded: bool = True, **settings: Any
) -> Iterator[Served]:
    """A server with limits of its own.

    Args:
        tiny: Its model.
        limits: What requests may ask for.
        loaded: Whether the model is there from the beginning.
        settings: Of the batch; the guard is off, so that texts are always drafted for.
    """
    target = tiny.target()
    drafters = {"eagle3": tiny_eagle3(target), "ngram": NgramDrafter(shortest=1)}
    policies = PolicySet(target, drafters, POLICIES)
    service = Service(NAME, limits or Limits())
    limited = BatchSettings(**{"guard": False, **settings})
    batcher = Batcher(target, drafters, policies, limited, service.metrics)
    batcher.start()
    model = Model(target, batcher, policies, Encoding(target))
    with running(make_app(service)) as address:
        served = Served(address, service, batcher, tiny, partial(service.serve, model))
        if loaded:
            served.load()
        yield served
    batcher.close()
