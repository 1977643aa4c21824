"""Several policies write the same prompts, turn by turn, and other engines between them.

All are interleaved prompt by prompt, in an order that rotates, so that whatever drifts on the
machine (clock, heat, neighbours) hits all alike.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor
from tqdm import tqdm

from draftgym.decoding.arms import PLAIN
from draftgym.decoding.decoder import Generation, Memory, RoutingPolicy, SpeculativeDecoder
from draftgym.decoding.drafting import LAZY_KV_ONLY, CatchUp, Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.device import clock
from draftgym.decoding.model.interface import ModelInputs
from draftgym.decoding.model.target import Target
from draftgym.decoding.observers.two_stage import observer_of
from draftgym.decoding.round import play_rounds
from draftgym.decoding.session import Session
from draftgym.decoding.text.stops import NO_STOPS, Stops
from draftgym.decoding.verify.base import VerificationRule
from draftgym.decoding.verify.rules import make_rule
from draftgym.decoding.verify.sampling import PLAIN_SAMPLING, SamplingSettings
from draftgym.decoding.verify.seeds import text_seed
from draftgym.rollouts.decode.fitting import fit_prompts, read_prompt, refuse_images
from draftgym.rollouts.peers.peer import Peer
from draftgym.rollouts.prompts.sets import Prompt

WARM_UP_TOKENS = 16


@dataclass(frozen=True)
class DecodeSettings:
    """How texts are written.

    Attributes:
        max_new_tokens: Tokens per prompt at most.
        temperature: 0 for greedy.
        seed: Seed of the sampling noise, of one text or of a run; see `of`.
        verification: `greedy`, `coupled`, `rejection`, or None to go by temperature.
        catching_up: When and how drafters encode what they missed; changes no text.
        stops: What ends a text beside the target itself.
        sampling: Top-k, top-p, min-p and repetition penalty.
    """

    max_new_tokens: int = 96
    temperature: float = 0.0
    seed: int = 0
    verification: str | None = None
    catching_up: CatchUp = LAZY_KV_ONLY
    stops: Stops = NO_STOPS
    sampling: SamplingSettings = PLAIN_SAMPLING

    def rule(self, target: Target) -> VerificationRule:
        """A new rule for a text.

        Raises:
            DraftgymError: Settings that do not go together.
        """
        return make_rule(
            *(self.verification, self.temperature, self.seed, target.vocab_size, self.sampling)
        )

    def of(self, prompt: Prompt) -> DecodeSettings:
        """Those of one text of a run: its noise is its own, and the same for every policy."""
        return replace(self, seed=text_seed(self.seed, prompt.question_id))


@dataclass(frozen=True)
class DecodedText:
    """One text.

    Attributes:
        prompt: What was asked.
        policy: Who routed, or the peer who wrote it.
        generation: Tokens, rounds and times; of a peer its tokens alone.
        seconds: The whole call, prompt included, tokenisation not; 0 where nobody took the time.
    """

    prompt: Prompt
    policy: str
    generation: Generation
    seconds: float = 0.0


def decode_prompts(
    target: Target,
    drafters: Mapping[str, Drafter],
    policies: Mapping[str, RoutingPolicy],
    prompts: Sequence[Prompt],
    settings: DecodeSettings,
    progress: bool = True,
    peers: Mapping[str, Peer] | None = None,
) -> list[DecodedText]:
    """Writes every prompt with every policy; arguments and errors as `decode_each`.

    Returns:
        Prompt by prompt, and within a prompt in the order in which the policies ran.
    """
    each = decode_each(target, drafters, policies, prompts, settings, progress, peers=peers)
    return [text for texts in each for text in texts]


def decode_each(
    target: Target,
    drafters: Mapping[str, Drafter],
    policies: Mapping[str, RoutingPolicy],
    prompts: Sequence[Prompt],
    settings: DecodeSettings,
    progress: bool = True,
    label: str = "decoding",
    peers: Mapping[str, Peer] | None = None,
) -> Iterator[list[DecodedText]]:
    """Writes prompt by prompt, so that a long run can save what it has.

    Args:
        target: The target.
        drafters: Drafters by name.
        policies: Policies by name.
        prompts: What to write about, decoded in this order. Where a prompt has several turns, each
            is a text of its own; all policies go on behind the same answer, that of plain decoding
            (or of the first policy), with the cache of their own turns before; with peers, which
            keep none, nobody has it.
        settings: How.
        progress: Whether to show a progress bar.
        label: What the progress bar says.
        peers: Other engines by name, which take turns with the policies.

    Yields:
        The texts of one turn of a prompt, in the order in which the policies ran.

    Raises:
        DraftgymError: Prompts that do not fit (see `fit_prompts`), or bad settings; both before
            anything is decoded.
    """
    settings.rule(target)
    limit, peers = settings.max_new_tokens, peers or {}
    if peers:
        refuse_images(prompts)
    fit_prompts(target, prompts, limit, all_turns=True, with_images=True)
    decoders = {
        name: SpeculativeDecoder(target, drafters, policy) for name, policy in policies.items()
    }
    _warm_up(decoders, peers, read_prompt(target, prompts[0]), settings)
    names = [*policies, *peers]
    total = sum(len(prompt.turns) for prompt in prompts) * len(names)
    leading = PLAIN if PLAIN in policies else next(iter(policies), PLAIN)
    pause = 0.2 if sys.stderr.isatty() else 10.0  # seconds; a log file wants few lines
    with tqdm(total=total, desc=label, unit="text", disable=not progress, mininterval=pause) as bar:
        for turn, prompt in enumerate(prompts):
            several = len(prompt.turns) > 1 and not peers
            memories = {name: Memory() for name in policies if several}
            asked = prompt
            while True:
                (said, shown), texts = read_prompt(target, asked), {}
                for name in turn_order(names, turn):
                    bar.set_postfix_str(name, refresh=False)
                    how, memory, ids = settings.of(asked), memories.get(name), said.tolist()
                    start = clock(target.device)
                    if name in peers:
                        generation = Generation(peers[name].write(ids, limit), len(ids))
                    else:
                        generation = write(decoders[name], said, how, memory=memory, inputs=shown)
                    seconds = clock(target.device) - start
                    texts[name] = DecodedText(asked, name, generation, seconds)
                    bar.update()
                yield list(texts.values())
                if not (asked.has_next and texts):
                    break
                asked = next_turn(target, asked, texts[leading].generation.tokens, settings.stops)


def next_turn(target: Target, prompt: Prompt, answer: list[int], stops: Stops) -> Prompt:
    """The turn behind the one that was answered; there must be one.

    Args:
        target: Who answered.
        prompt: What it answered.
        answer: Its token ids.
        stops: What ended it.
    """
    following = prompt.answered(stops.cut(target.decode(answer)))
    assert following is not None
    return following


def turn_order(names: Sequence[str], turn: int) -> list[str]:
    """The order in which all write prompt number `turn`.

    One place on each prompt and another one after each full circle: prompts come category by
    category in turn, and a plain rotation by as many places as there are categories would give a
    policy the same place for all prompts of a category.
    """
    shift = (turn + turn // len(names)) % len(names)
    return [*names[shift:], *names[:shift]]


def write(
    decoder: SpeculativeDecoder,
    ids: Tensor,
    settings: DecodeSettings,
    with_margins: bool = False,
    memory: Memory | None = None,
    inputs: ModelInputs | None = None,
) -> Generation:
    """One text with these settings; `seed` is its own. Others: see `SpeculativeDecoder`."""
    return decoder.generate(
        ids,
        inputs=inputs,
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        seed=settings.seed,
        verification=settings.verification,
        with_margins=with_margins,
        catching_up=settings.catching_up,
        stops=settings.stops,
        sampling=settings.sampling,
        memory=memory,
    )


def write_together(
    target: Target,
    drafters: Mapping[str, Drafter],
    policies: Mapping[str, RoutingPolicy],
    ids: Tensor,
    settings: DecodeSettings,
) -> dict[str, list[int]]:
    """One text per policy, all verified in the same passes: much faster, but without times.

    `settings.seed` is the text's own.

    Returns:
        New token ids by policy.

    Raises:
        DraftgymError: The rule draws from one stream of random numbers, which cannot be shared.
    """
    if settings.verification == "rejection":
        raise DraftgymError(
            "texts under rejection verification cannot share passes", "use greedy or coupled"
        )
    rule = settings.rule(target)

    def new_session() -> Session:
        return Session(
            target,
            ids,
            rule,
            settings.max_new_tokens,
            drafters,
            catching_up=settings.catching_up,
            stops=settings.stops,
        )

    first = new_session()
    first.prefill()
    sessions, observers = {}, {}
    for name, policy in policies.items():
        sessions[name] = new_session()
        sessions[name].start_like(first)
        observers[name] = observer_of(policy)
    while running := [name for name, session in sessions.items() if not session.finished]:
        actions = []
        for name in running:
            policy = policies[name]
            observation = observers[name].observe(sessions[name]) if policy.observes else {}
            actions.append(int(policy.predict(observation, deterministic=True)[0]))
        pairs = zip(running, actions, strict=True)
        arms = [observers[name].arm(policies[name], action) for name, action in pairs]
        records = play_rounds([sessions[name] for name in running], arms)
        for name, action, record in zip(running, actions, records, strict=True):
            observers[name].update(action, record)
    return {name: session.new_tokens for name, session in sessions.items()}


def _warm_up(
    decoders: Mapping[str, SpeculativeDecoder],
    peers: Mapping[str, Peer],
    prompt: tuple[Tensor, ModelInputs | None],
    settings: DecodeSettings,
) -> None:
    """First calls pay for memory and kernels; that is nobody's fault."""
    few = replace(settings, max_new_tokens=min(WARM_UP_TOKENS, settings.max_new_tokens))
    for decoder in decoders.values():
        write(decoder, prompt[0], few, inputs=prompt[1])
    for peer in peers.values():
        peer.write(prompt[0].tolist(), few.max_new_tokens)
