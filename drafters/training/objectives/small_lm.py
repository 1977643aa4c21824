"""A small LM to train: the target with most layers taken out, distilled from the whole.

Small LMs draft with our own pass. A target that only transformers drives has no layers to give
them; its small LM is a Llama with its embedding and head, and fresh layers between.

Knowledge distillation as in DistillSpec (arXiv 2310.08461), on the target's own texts: the student
is an ordinary language model, so the teacher is the target's head on its final hidden states and
every position gives a whole distribution to learn from. The losses are those of the other drafters
(`draftgym.drafters.training.objectives.losses`), with one draft position behind each anchor.

The head of a large vocabulary costs more than the student's layers (49,152 rows for SmolLM2), so
the student scores the most frequent tokens alone, and a training batch a sample of these.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model import loading
from draftgym.decoding.model.compact.transformer import Decoder
from draftgym.decoding.model.device import to_host
from draftgym.decoding.model.target import Target, resolve_target
from draftgym.drafters.modules import usual_mlp_width
from draftgym.drafters.small_lm.network import read_small_lm, save_small_lm
from draftgym.drafters.small_lm.vocabulary import read_draft_ids
from draftgym.drafters.training.data.corpus import Corpus
from draftgym.drafters.training.data.features import FeatureBatch
from draftgym.drafters.training.objectives.candidates import CandidateSampler, draw
from draftgym.drafters.training.objectives.losses import Loss, Scored
from draftgym.drafters.training.objectives.objective import Objective, ObjectiveOutput
from draftgym.drafters.vocabulary import draft_labels, most_frequent

FRESH_LAYERS = 6
"""Layers of a small LM that does not start from another, where nobody says."""


@dataclass(frozen=True)
class SmallLMSettings:
    """The small LM and its objective."""

    layers: int | None = None
    """Layers that are kept of the target, or of --init; default: 6, or all of --init."""
    last: int = 3
    """How many of them are its last ones; the others are its first. -1: evenly spaced."""
    draft_vocab: int = 8192
    """Tokens it can propose: the most frequent of the corpus, or all there are."""
    frequent: int = 2048
    """Most frequent draft tokens, which take part in the softmax of every batch."""
    others: int = 768
    """Other draft tokens drawn for each batch to stand for the rest; 0 takes all, always."""


class SmallLMObjective(Objective):
    """A loss between student and target on response positions.

    Args:
        network: A transformers causal LM (float32) with the target's embedding and head, frozen; it
            is moved to the target's device.
        target: The target. Its head serves teacher and student, with what else it does to logits
            where the student is cut out of it.
        loss: What to minimise.
        draft_ids: The tokens that the student drafts, ascending `[Vd]`; None for all.
        sampler: Draws those of them that take part in a training batch; None takes all.
    """

    tap_layers = ()

    def __init__(
        self,
        network: Any,
        target: Target,
        loss: Loss,
        draft_ids: Tensor | None = None,
        sampler: CandidateSampler | None = None,
    ) -> None:
        self.network, self.loss, self.sampler = network.to(target.device), loss, sampler
        vocab = target.vocab_size
        self.narrow = draft_ids is not None and len(draft_ids) < vocab
        ids = torch.arange(vocab) if draft_ids is None else draft_ids
        self.draft_ids = ids.to(target.device)
        self.labels = draft_labels(self.draft_ids, vocab)
        self.logits, dtype = target.decoder.logits, target.decoder.dtype
        self.dtype = torch.float32 if dtype == torch.float16 else dtype
        self.student_logits = self.logits if isinstance(target.decoder, Decoder) else self._own

    def __call__(self, batch: FeatureBatch, seed: int | None = None) -> ObjectiveOutput:
        """Loss of one batch, and top-1 agreement with the text.

        Padding lies behind the texts, where causal attention never looks.
        """
        scored = self.scored(batch, seed)
        return ObjectiveOutput(self.loss(scored), scored.agreement())

    def scored(self, batch: FeatureBatch, seed: int | None) -> Scored:
        """The response positions of one batch, each an anchor `[A, 1]` with what stands behind."""
        hidden = self.network.model(batch.tokens, use_cache=False).last_hidden_state
        positions = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)
        real = positions >= batch.prompt_lengths[:, None] - 1
        real &= positions < batch.lengths[:, None] - 1
        labels = self.labels[batch.tokens.roll(-1, 1)]
        candidates = draw(self.sampler, labels[real], seed)
        rows, kept = candidates.of(self.draft_ids), real & (labels >= 0)
        drafted = labels[real] >= 0
        return Scored(
            candidates.corrected(self.student_logits(hidden[kept].to(self.dtype), rows)),
            candidates.corrected(self.logits(batch.hidden[kept].to(self.dtype), rows)),
            candidates.columns(labels[kept]),
            drafted[:, None],
            torch.ones_like(drafted)[:, None],
        )

    def _own(self, hidden: Tensor, rows: Tensor) -> Tensor:
        """The student's own logits, of a hidden state in float32."""
        return F.linear(hidden.float(), self.network.lm_head.weight[rows])

    def export(self, folder: Path, target: Target) -> None:
        """Writes an ordinary Hugging Face folder."""
        draft_ids = to_host(self.draft_ids) if self.narrow else None
        save_small_lm(self.network, folder, target, draft_ids)


def build_small_lm(
    settings: SmallLMSettings, init: Path | None, target: Target, corpus: Corpus, loss: Loss
) -> SmallLMObjective:
    """The target, or a small LM, with some of its layers taken out, to be distilled.

    A small LM that has a draft vocabulary keeps it.

    Raises:
        DraftgymError: Impossible numbers, or `init` is no small LM of this target.

    Which layers it starts from, measured on SmolLM2-135M's own greedy texts (six layers of thirty,
    peak rate 6e-4, one seed, 486 validation positions; soft cross-entropy and top-1 agreement with
    the text over the whole vocabulary, before training and after 25 updates of 2 texts, about 24
    CPU seconds; the teacher's entropy is 1.33 nats):

    | first + last | loss before | after | top-1 before | after |
    |---|---|---|---|---|
    | 6 + 0 | 19.8 | 8.66 | 0.047 | 0.152 |
    | 4 + 2 | 16.8 | 7.86 | 0.000 | 0.113 |
    | 3 + 3 | 12.0 | 7.12 | 0.014 | 0.117 |
    | evenly spaced | 16.8 | 6.83 | 0.000 | 0.088 |

    No choice wins everywhere: 3 + 3 starts best by loss, is second by both figures afterwards, and
    hence is the default. All of these are early figures; hundreds of updates may rank otherwise.
    Of choices measured before training only, on other texts (3 + 3: 11.1), 5 + 1 has 28.4; of eight
    layers, 5 + 3 has 10.8, 6 + 2 15.8 and 8 + 0 16.5.
    """
    counts = corpus.token_counts(target.vocab_size)
    draft_ids = most_frequent(counts, settings.draft_vocab)
    if init is not None:
        network = _initial(init, target)
        total = network.config.num_hidden_layers
        network = cut_layers(network, kept_layers(total, settings.layers or total, settings.last))
        stored = read_draft_ids(init, network.config)
        draft_ids = draft_ids if stored is None else stored
    else:
        total = target.decoder.shape.layers
        kept = kept_layers(total, settings.layers or FRESH_LAYERS, settings.last)
        if isinstance(target.decoder, Decoder):
            network = cut_layers(load_model(target.name), kept)
        else:
            network = fresh_llama(target, len(kept))
    frequent = most_frequent(counts[draft_ids], settings.frequent)
    sampler = CandidateSampler(len(draft_ids), frequent, settings.others)
    return SmallLMObjective(network, target, loss, draft_ids, sampler)


def _initial(folder: Path, target: Target) -> Any:
    """A small LM of a target, in float32."""
    network = read_small_lm(folder, target).float()
    own, head = network.get_output_embeddings().weight, target.decoder.head
    if not torch.equal(own.bfloat16(), to_host(head).bfloat16()):
        raise DraftgymError(
            f"--init {folder} has another head than target {target.name!r}",
            "start from a small LM that was distilled from this target, or from none",
        )
    return network


def kept_layers(total: int, layers: int, last: int) -> list[int]:
    """0-based target layers that a small LM keeps, ascending.

    Args:
        total: Layers of the target.
        layers: How many are kept.
        last: How many of these are the last ones; -1 for evenly spaced ones.

    Raises:
        DraftgymError: Impossible numbers.
    """
    if not 1 <= layers <= total:
        raise DraftgymError(
            f"--drafter.layers is {layers}, the target has {total}", "keep some of its layers"
        )
    if last > layers:
        raise DraftgymError(
            f"--drafter.last is {last} of {layers} layers", "give at most --drafter.layers"
        )
    if last < 0:
        return [round(i * (total - 1) / max(1, layers - 1)) for i in range(layers)]
    return [*range(layers - last), *range(total - last, total)]


def load_model(target: str) -> Any:
    """The target as a transformers model in float32."""
    source, called = resolve_target(target), f"target {target!r}"
    return loading.load_model(source, loading.load_config(source, called), torch.float32, called)


def fresh_llama(target: Target, layers: int) -> Any:
    """A random Llama between a target's embedding and head, which are frozen.

    Args:
        target: A target that transformers drives.
        layers: Its layers.

    Raises:
        DraftgymError: Embedding and head are not of one size, as those of a Llama are.
    """
    decoder, shape = target.decoder, target.decoder.shape
    embedding, head = decoder.embedding[: shape.vocab], decoder.head
    if embedding.shape != head.shape:
        raise DraftgymError(
            f"the embedding of target {target.name!r} has shape {tuple(embedding.shape)}, its head "
            f"{tuple(head.shape)}, and a small LM takes over both",
            "use prompt lookup (ngram), or name a target whose tables are of one size",
        )
    print(
        f"note: transformers drives target {target.name!r}; the small LM starts with its embedding "
        "and head, and fresh layers",
        file=sys.stderr,
    )
    config = transformers.LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=usual_mlp_width(shape.hidden),
        num_hidden_layers=layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=target.context_limit,
        tie_word_embeddings=embedding.data_ptr() == head.data_ptr(),
        eos_token_id=sorted(target.stop_tokens) or None,
    )
    model = transformers.LlamaForCausalLM(config).float()
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(embedding)
        model.get_output_embeddings().weight.copy_(head)
    return freeze_tables(model)


def cut_layers(model: Any, kept: Sequence[int]) -> Any:
    """Takes all other layers out of a model and freezes its embedding and head.

    Args:
        model: A transformers causal LM; changed in place.
        kept: 0-based layers, ascending.
    """
    model.model.layers = torch.nn.ModuleList(model.model.layers[i] for i in kept)
    for index, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = index
    model.config.num_hidden_layers = len(kept)
    if kinds := getattr(model.config, "layer_types", None):
        model.config.layer_types = [kinds[i] for i in kept]
    return freeze_tables(model)


def freeze_tables(model: Any) -> Any:
    """Freezes a model's embedding and head, and lets the rest be trained."""
    model.get_input_embeddings().requires_grad_(False)
    model.get_output_embeddings().requires_grad_(False)
    return model.train()
