"""What a device uploads with a draft, in bits.

Which of the three is enough depends on the verification rule:

* `truncated` - Multi-SPIN (arXiv 2606.04581, eq. 9): for *every* drafted token the `kept` largest
  draft probabilities with their indices. Enough for any rule. It is exact only if tokens are
  sampled from the truncated, quantised distribution; the paper calls the difference negligible.
* `scalar` - the token and its draft probability (arXiv 2608.29618, Observation 1): enough to
  *accept* by the `rejection` rule. To correct a rejected token, the truncated distribution at that
  one position follows after verification (`correction_bits`; the paper's uplink mode).
* `tokens` - token ids alone: enough for `greedy` and `coupled`, whose verdict reads no draft
  probabilities, and for `rejection` where the draft was not sampled (argmax, trees, prompt lookup).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from draftgym.decoding.errors import DraftgymError

PAYLOAD_MODES = ("truncated", "scalar", "tokens")


@dataclass(frozen=True)
class Payload:
    """Bits on the air. Neither paper counts what frames and headers add; `frame_bits` can.

    Attributes:
        mode: One of `PAYLOAD_MODES`.
        bits_per_token: Bits of each drafted token (Multi-SPIN's Q_tok).
        correction_bits: Bits that a device uploads after verification if a token of its draft was
            rejected.
        frame_bits: Bits of a message around its tokens: headers, a report.
    """

    mode: str
    bits_per_token: int
    correction_bits: int = 0
    frame_bits: int = 0

    def draft_bits(
        self, drafted: ArrayLike, sent: NDArray[np.bool_] | None = None
    ) -> NDArray[np.int64]:
        """Bits of whole drafts.

        Args:
            drafted: Drafted tokens `[...]`.
            sent: Who sends a message, though it may be of no token; None for who drafts some.
        """
        drafted = np.asarray(drafted, np.int64)
        sent = drafted > 0 if sent is None else sent
        return np.asarray(drafted * self.bits_per_token + sent * self.frame_bits)


def make_payload(mode: str, vocabulary: int, kept: int = 1024, precision: int = 16) -> Payload:
    """The payload of a mode.

    Args:
        mode: One of `PAYLOAD_MODES`.
        vocabulary: Tokens there are, V; an index takes `ceil(log2 V)` bits.
        kept: Probabilities of a truncated distribution, 1024 in both papers.
        precision: Bits of a probability: 16 in 2608.29618, "e.g. 16" in 2606.04581.

    Raises:
        DraftgymError: An unknown mode, or sizes that make no sense.
    """
    if mode not in PAYLOAD_MODES:
        raise DraftgymError(f"unknown payload {mode!r}", f"use one of {', '.join(PAYLOAD_MODES)}")
    if vocabulary < 2 or not 1 <= kept <= vocabulary or precision < 1:
        raise DraftgymError(
            f"a payload of {kept} probabilities of {precision} bits over {vocabulary} tokens",
            "keep between one probability and the whole vocabulary, of at least one bit each",
        )
    index = (vocabulary - 1).bit_length()
    distribution = kept * (index + precision)
    if mode == "truncated":
        return Payload(mode, distribution)
    if mode == "scalar":
        return Payload(mode, index + precision, distribution)
    return Payload(mode, index)
