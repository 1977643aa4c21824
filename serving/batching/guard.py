"""The guard: leaves speculation out where it has been slower than plain decoding.

It judges what the whole batch commits per second, of batches of about the same size under the same
policies. What plain rounds take is measured first, and again by one plain round now and then.
Speculation stops once it is clearly slower, and is tried again after a pause that doubles while it
fails, and that is so long that trying takes about a hundredth of the time.
"""

from __future__ import annotations

from collections import deque
from statistics import mean, median, median_low, pstdev

from draftgym.serving.batching.watching import Judged

Key = tuple[int, tuple[str, ...]]
"""How many texts are in the batch, and the names of those who choose, sorted."""

TOLERANCE = 0.98
"""Goodput, as a share of plain decoding's, below which speculation is slower."""
FIRST_PLAIN, PLAIN_ROUNDS, PLAIN_EVERY = 4, 8, 128
"""Plain rounds before all others, those that are compared with, and after how many speculative
rounds there is a new one."""
FRESH = 32
"""Speculative rounds after which plain ones are measured anew before speculation stops."""
WINDOW = 128
"""Speculative rounds that are judged together, at most."""
SELDOM = 8
"""Once the window is full, it is judged after so many rounds: judging is not free either."""
EVIDENCE = 8
"""Rounds of single texts that are judged at least: two of a batch of 4, eight of a batch of 1."""
SURE = 2.5
"""Standard errors by which fewer rounds than the window must have been slower."""
SETTLED = 256
"""Speculative rounds in a row after which earlier failures are forgotten."""
PAUSES = (64, 4096)
"""Plain rounds before the next trial: at first, and at most."""
PRICE = 128
"""Plain rounds before the next trial for each one that the last has cost."""
MOST_KEYS = 256
OUTLIER = 3
"""A round counts as no longer than so many median ones: the machine did something else."""


class Guard:
    """Decides round by round whether policies are asked at all.

    It knows only what it is told; it has no clock and no chance of its own. Sizes of 1, 2, 3-4,
    5-8, ... texts are judged together.
    """

    def __init__(self) -> None:
        self._accounts: dict[Key, _Account] = {}

    def allows(self, key: Key, told: bool = True) -> bool:
        """Whether the next round may speculate.

        Args:
            key: Of the batch.
            told: Whether `tell` will be called; where it will not (a prompt is read in the pass),
                what is known counts, and nothing is tried out.
        """
        account = self._accounts.get(_kind(key))
        return account is not None and account.allows(told)

    def tell(self, key: Key, speculated: bool, seconds: float, tokens: int) -> bool:
        """Takes in a round in which no prompt was read.

        Args:
            key: Of the batch.
            speculated: Whether the policies were asked, whatever they chose.
            seconds: The whole round: choosing, drafting, verifying, committing.
            tokens: Committed tokens of all texts.

        Returns:
            Whether a verdict has changed.
        """
        kind = _kind(key)
        account = self._accounts.pop(kind, None) or self._new_account(*kind)
        self._accounts[kind] = account  # behind all others: the first is the one longest unused
        if len(self._accounts) > MOST_KEYS:
            del self._accounts[next(iter(self._accounts))]
        before = account.verdict
        account.tell(speculated, seconds, max(1, tokens))
        return account.verdict is not before

    def _new_account(self, texts: int, policies: tuple[str, ...]) -> _Account:
        """Where speculation does not pay in a smaller batch, it is not begun with in a larger one.

        Rows are the dearer, the more there are. Like every verdict, that is tried again.
        """
        account = _Account(texts)
        for (smaller, its), known in self._accounts.items():
            if its == policies and smaller < texts and known.verdict is False:
                account.pause()
        return account

    def describe(self) -> list[Judged]:
        """What is known of each kind of batch that was met, in the order of sizes and names."""
        return [
            Judged(
                most // 2 + 1,
                most,
                policies,
                account.verdict is not False,
                account.gain(),
            )
            for (most, policies), account in sorted(self._accounts.items())
        ]


def _kind(key: Key) -> Key:
    """What batches are judged together: the most texts of such a batch, and who chooses."""
    texts, policies = key
    return 1 << (texts - 1).bit_length(), policies


class _Account:
    """What is known of one kind of batch.

    Args:
        texts: Most texts of such a batch.

    Attributes:
        verdict: Whether speculation pays; None until it is known.
    """

    def __init__(self, texts: int) -> None:
        self.verdict: bool | None = None
        self._texts = texts
        self._plain: deque[tuple[float, int]] = deque(maxlen=PLAIN_ROUNDS)  # seconds, tokens
        self._drafted: deque[tuple[float, int]] = deque(maxlen=WINDOW)
        self._plain_due = FIRST_PLAIN
        self._plain_age = 0  # speculative rounds since the last plain one
        self._paused = False
        self._rounds = 0  # since speculation began or stopped
        self._pause, self._failures = 0, 0

    def allows(self, told: bool) -> bool:
        """Whether to speculate; see `Guard.allows`."""
        if not told:
            return self.verdict is not False and (self.gain() or 0) >= 1
        return not self._paused and not self._plain_due

    def tell(self, speculated: bool, seconds: float, tokens: int) -> None:
        """Takes in a round."""
        if speculated != self._paused:
            self._rounds += 1
        if not speculated:
            self._plain.append((seconds, tokens))
            self._plain_due = max(0, self._plain_due - 1)
            self._plain_age = 0
            if self._paused and self._rounds >= self._pause:
                self._start()
            return
        self._plain_age += 1
        self._drafted.append((seconds, tokens))
        if not self._paused and self._plain:
            self._judge()

    def pause(self, rounds: int = PAUSES[0]) -> None:
        """Leaves speculation out for so many plain rounds."""
        self._pause = rounds
        self.verdict, self._paused, self._rounds = False, True, 0

    def gain(self) -> float | None:
        """Goodput of the last speculative rounds over that of plain ones."""
        if not (self._plain and self._drafted):
            return None
        tokens = sum(tokens for _, tokens in self._drafted)
        return tokens * self._plain_pace() / sum(self._drafted_seconds())

    def _start(self) -> None:
        self._paused, self._rounds = False, 0
        self._drafted.clear()

    def _judge(self) -> None:
        if self._rounds >= WINDOW:
            self.verdict = True
        if self._rounds >= SETTLED:
            self._failures = 0
        if self._plain_age >= PLAIN_EVERY:
            self._plain_due = 1
        if (self._rounds > WINDOW and self._rounds % SELDOM) or not self._is_slow():
            return
        if self._plain_age > FRESH:  # plain decoding may have become slower as well
            self._plain.clear()
            self._plain_due = PLAIN_ROUNDS
        else:
            self._stop()

    def _is_slow(self) -> bool:
        """Whether the last rounds show that speculation does not pay."""
        count = len(self._drafted)
        gain = self.gain()
        if count < max(2, EVIDENCE // self._texts) or gain is None or gain >= TOLERANCE:
            return False
        lost = self._losses()
        # A drafter that pays has good and bad rounds: few of them look more alike than they are.
        least = mean(self._drafted_seconds()) / (2 * self._texts**0.5)
        return count == WINDOW or sum(lost) > SURE * max(pstdev(lost), least) * count**0.5

    def _stop(self) -> None:
        trial = self._rounds < SETTLED
        lost = sum(self._losses()) / median(seconds for seconds, _ in self._plain)
        first, most = PAUSES
        price = PRICE * lost if trial else 0
        self.pause(int(min(most, max(first << self._failures, price))))
        self._failures = min(self._failures + 1, (most // first).bit_length() - 1)

    def _plain_pace(self) -> float:
        """Seconds of a token in plain rounds."""
        return median(seconds / tokens for seconds, tokens in self._plain)

    def _drafted_seconds(self) -> list[float]:
        """Seconds of the speculative rounds, without stalls."""
        most = OUTLIER * median_low(seconds for seconds, _ in self._drafted)
        return [min(seconds, most) for seconds, _ in self._drafted]

    def _losses(self) -> list[float]:
        """Seconds by which each speculative round was slower than plain ones of its tokens."""
        pace = self._plain_pace()
        pairs = zip(self._drafted_seconds(), self._drafted, strict=True)
        return [seconds - tokens * pace for seconds, (_, tokens) in pairs]
