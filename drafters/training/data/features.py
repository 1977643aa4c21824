"""What the target says about a batch of texts: taps and final hidden states, padded.

A pass of the target costs more than a pass of a drafter, and it says the same at every visit of a
text. `FeatureCache` therefore keeps its answers on disk, one file per text, for all epochs and for
every drafter that is trained on the same texts.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import replacing
from draftgym.decoding.model.device import to_host
from draftgym.decoding.model.interface import NewRows, PassOutput, SequenceCache
from draftgym.decoding.model.prompts.processor import images_of
from draftgym.decoding.model.target import Target
from draftgym.drafters.training.data.corpus import Text

HIDDEN = "hidden"


@dataclass(frozen=True)
class FeatureBatch:
    """A padded batch on the target's device. B = texts, S = longest text.

    Attributes:
        tokens: Token ids `[B, S]`, zero behind the end.
        lengths: Tokens of each text `[B]`.
        prompt_lengths: Prompt tokens of each text `[B]`.
        taps: Concatenated taps `[B, S, k * d]`.
        hidden: Final hidden states after the last norm `[B, S, d]`.
        texts: What they were made of.
    """

    tokens: Tensor
    lengths: Tensor
    prompt_lengths: Tensor
    taps: Tensor
    hidden: Tensor
    texts: tuple[Text, ...] = ()

    @property
    def response_tokens(self) -> int:
        """Response tokens in the batch."""
        return int((self.lengths - self.prompt_lengths).sum())

    def to_train(self) -> FeatureBatch:
        """The same, in float32 where it is in float16, whose gradients would vanish."""
        if self.taps.dtype != torch.float16:
            return self
        return replace(self, taps=self.taps.float(), hidden=self.hidden.float())

    def only(self, row: int) -> FeatureBatch:
        """One of the texts, without the padding that the others need."""
        length = int(self.lengths[row])
        columns = (self.tokens, self.taps, self.hidden)
        tokens, taps, hidden = (column[row : row + 1, :length] for column in columns)
        lengths = (self.lengths[row : row + 1], self.prompt_lengths[row : row + 1])
        return FeatureBatch(tokens, *lengths, taps, hidden, self.texts[row : row + 1])


@dataclass(frozen=True)
class TextFeatures:
    """The target's answer to one text of n tokens.

    Attributes:
        taps: Concatenated taps `[n, k * d]`.
        hidden: Final hidden states after the last norm `[n, d]`.
    """

    taps: Tensor
    hidden: Tensor


def target_features(
    target: Target, texts: Sequence[Text], tap_layers: Sequence[int]
) -> FeatureBatch:
    """Runs the target once over whole texts, all in one ragged pass."""
    return pad_features(texts, run_target(target, texts, tap_layers))


def run_target(
    target: Target, texts: Sequence[Text], tap_layers: Sequence[int]
) -> list[TextFeatures]:
    """One ragged pass over whole texts, behind one over each prompt that shows images."""
    decoder = target.decoder
    caches = [decoder.new_cache(len(text.tokens)) for text in texts]
    begun = [
        read_images(target, text, cache, tap_layers)
        for text, cache in zip(texts, caches, strict=True)
    ]
    rows = [
        NewRows(cache, text.tokens[cache.length :].to(decoder.device))
        for text, cache in zip(texts, caches, strict=True)
    ]
    outputs = decoder.forward(rows, tap_layers, with_logits=False)
    found = []
    for first, rest in zip(begun, outputs, strict=True):
        parts = [one for one in (first, rest) if one is not None]
        # Copies: autograd cannot save tensors that were made in inference mode.
        taps = torch.cat([one.taps.flatten(1) for one in parts]).clone()
        found.append(TextFeatures(taps, torch.cat([one.hidden for one in parts]).clone()))
    return found


def read_images(
    target: Target, text: Text, cache: SequenceCache, tap_layers: Sequence[int] = ()
) -> PassOutput | None:
    """Runs the prompt of a text that shows images, and keeps it in the cache; None for others.

    Raises:
        DraftgymError: An image is missing, or the target writes another prompt of it.
    """
    if not text.shown:
        return None
    tokens, inputs = target.encode_with_images(text.shown)
    if not torch.equal(tokens, text.tokens[: text.prompt_length]):
        raise DraftgymError(
            f"the prompt of text {text.question_id!r} is not what target {target.name!r} makes of "
            "its images now",
            "write the responses again (draftgym respond)",
        )
    rows = NewRows(cache, tokens.to(target.device), inputs=inputs)
    (output,) = target.decoder.forward([rows], tap_layers, with_logits=False)
    cache.keep(len(tokens))
    return output


def pad_features(texts: Sequence[Text], features: Sequence[TextFeatures]) -> FeatureBatch:
    """Puts the features of several texts into one padded batch, where the features lie."""
    device = features[0].hidden.device
    return FeatureBatch(
        tokens=pad_sequence([text.tokens for text in texts], batch_first=True).to(device),
        lengths=torch.tensor([len(text.tokens) for text in texts], device=device),
        prompt_lengths=torch.tensor([text.prompt_length for text in texts], device=device),
        taps=pad_sequence([item.taps for item in features], batch_first=True),
        hidden=pad_sequence([item.hidden for item in features], batch_first=True),
        texts=tuple(texts),
    )


class FeatureCache:
    """Features on disk, filled as they are asked for. Several trainings may share a folder.

    About `(layers + 1) * d` numbers a token.

    Args:
        folder: Where the files lie; None computes features anew each time.
        target: The target.
        layers: Layers to store, so that drafters with other taps find theirs in the same files.
        stored: Dtype of the files. Rounding is no harm to training; measurements that must equal
            decoding store what decoding sees. Files in a narrower dtype count as missing.
    """

    def __init__(
        self,
        folder: Path | None,
        target: Target,
        layers: Iterable[int],
        stored: torch.dtype = torch.bfloat16,
    ) -> None:
        self.target, self.layers, self.stored = target, tuple(sorted(set(layers))), stored
        self.folder = None
        if folder is not None:
            self.folder = folder / target.fingerprint
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise DraftgymError(
                    f"cannot write to {folder}: {error.strerror}",
                    "name another folder with --features",
                ) from error

    def batch(self, texts: Sequence[Text], tap_layers: Sequence[int]) -> FeatureBatch:
        """Features of some texts; what the folder lacks is computed in one pass and stored.

        Once the folder cannot be written any more (a full disk), features are computed each time.
        """
        if self.folder is None:
            return target_features(self.target, texts, tap_layers)
        found = {index: self._read(text, tap_layers) for index, text in enumerate(texts)}
        missing = [index for index, item in found.items() if item is None]
        if missing:
            layers = sorted({*self.layers, *tap_layers})
            news = run_target(self.target, [texts[index] for index in missing], layers)
            try:
                for index, item in zip(missing, news, strict=True):
                    self._write(texts[index], layers, item)
                    found[index] = self._read(texts[index], tap_layers)
            except (OSError, SafetensorError) as error:
                print(
                    f"note: cannot write {self.folder}: {error}; features are computed anew each "
                    "time. Name another folder with --features",
                    file=sys.stderr,
                )
                self.folder = None
                return target_features(self.target, texts, tap_layers)
        return pad_features(texts, [item for item in found.values() if item is not None])

    def _path(self, text: Text) -> Path:
        assert self.folder is not None
        name = hashlib.sha256(text.tokens.numpy().tobytes())
        for image in images_of(text.shown):  # which tokens do not tell apart
            name.update(Path(image).read_bytes())
        return self.folder / f"{name.hexdigest()[:24]}.safetensors"

    def _read(self, text: Text, tap_layers: Sequence[int]) -> TextFeatures | None:
        """The stored features; None if there are none, or none of a layer, or a damaged file."""
        where, dtype = self.target.device, self.target.decoder.dtype
        try:
            with safe_open(self._path(text), "pt") as file:
                taps = [file.get_tensor(str(layer)) for layer in tap_layers]
                hidden = file.get_tensor(HIDDEN)
        except (OSError, SafetensorError):
            return None
        if torch.finfo(hidden.dtype).bits < torch.finfo(self.stored).bits:
            return None
        joined = torch.cat(taps, dim=-1) if taps else hidden.new_empty(len(hidden), 0)
        return TextFeatures(joined.to(where, dtype), hidden.to(where, dtype))

    def _write(self, text: Text, layers: Sequence[int], features: TextFeatures) -> None:
        parts = features.taps.to(self.stored).chunk(max(1, len(layers)), dim=-1)
        tensors = {
            str(layer): to_host(part).clone() for layer, part in zip(layers, parts, strict=False)
        }
        tensors[HIDDEN] = to_host(features.hidden.to(self.stored))
        with replacing(self._path(text)) as partial:
            save_file(tensors, partial)
