"""A trained scheduler: a network that says what every user drafts, loaded from its folder.

Four heads, by what agents choose:

* `beliefs`: the acceptance to expect of the user's next tokens; -1 is 0 and 1 is 1, and lengths
  follow by Multi-SPIN's optimisation (`Box`; PPO, SAC)
* `tilts`: that, and by how many decibels a user's channel is better or worse than reported, for the
  division of the band (`Box`; PPO)
* `lengths`: a score for every draft length (`MultiDiscrete`; PPO)
* `shares`: a number in [-1, 1] for the draft, -1 being none and 1 the longest, rounded, and a
  weight for the user's part of the band (`Box`; SAC, the ablation)

It reads the observation of `draftgym/Scheduler-v0` and answers as Stable-Baselines3's agent does,
random actions included, and needs neither that nor gymnasium.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from draftgym.decoding.arms import Arm
from draftgym.decoding.errors import DraftgymError
from draftgym.policies.folder import (
    AGAIN,
    BODY,
    SCHEDULER,
    PolicyTarget,
    policy_name,
    read_policy,
    write_policy,
)
from draftgym.policies.multispin.curves import belief_plan
from draftgym.policies.multispin.problem import Lengths, RoundProblem, nearest_lengths
from draftgym.policies.schedulers.network import SchedulerNetwork

BELIEFS, LENGTHS, SHARES, TILTS = "beliefs", "lengths", "shares", "tilts"
COMPONENTS = {BELIEFS: 1, SHARES: 2, TILTS: 2}
"""Numbers of an action per user, of heads that choose in a box."""


@dataclass(frozen=True)
class SchedulerHead:
    """What the outputs of a network mean.

    Attributes:
        kind: `beliefs`, `tilts`, `lengths` or `shares`.
        longest: Longest draft.
        user_features: Names of the numbers of a user, in order.
        cell_features: Names of the numbers of the cell.
    """

    kind: str
    longest: int
    user_features: tuple[str, ...]
    cell_features: tuple[str, ...]

    def __post_init__(self) -> None:
        kinds = (LENGTHS, *COMPONENTS)
        if self.kind not in kinds or not {"active", "deciding"} <= set(self.user_features):
            raise DraftgymError(
                f"a scheduler of kind {self.kind!r} that reads {', '.join(self.user_features)}",
                f"it must be one of {', '.join(kinds)}, and know who is active and who decides",
            )

    @property
    def outputs(self) -> int:
        """Outputs per user: a score per length, or a mean and a spread per component."""
        return self.longest + 1 if self.kind == LENGTHS else 2 * COMPONENTS[self.kind]

    @property
    def deciding(self) -> int:
        """Which of a user's numbers says that its action is read."""
        return self.user_features.index("deciding")

    def network(self, width: int) -> SchedulerNetwork:
        """An untrained network of this shape."""
        sizes = len(self.user_features), len(self.cell_features), self.outputs, width
        return SchedulerNetwork(*sizes, active=self.user_features.index("active"))


class LearnedScheduler:
    """Chooses draft lengths with a trained network.

    Args:
        network: The network.
        head: What its outputs mean.
        task_acceptance: Mean acceptance of tasks (`category/arm`) as it was told in training.
        name: How tables call it.
        seed: Seed of the choices when asked to sample.
        squashed_noise: Whether random actions in a box are the tanh of a normal number, as SAC's
            are, or a normal number around the tanh, cut to the box, as PPO's are.
    """

    def __init__(
        self,
        network: SchedulerNetwork,
        head: SchedulerHead,
        task_acceptance: Mapping[str, float] | None = None,
        name: str = "learned",
        seed: int = 0,
        squashed_noise: bool = False,
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self.head = head
        self.task_acceptance = dict(task_acceptance or {})
        self.name, self.squashed_noise = name, squashed_noise
        self.rng = np.random.default_rng(seed)

    def predict(
        self,
        observation: Mapping[str, Any],
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], Any]:
        """Actions as the environment takes them, and `state` as it came; SB3's `predict`.

        Args:
            observation: Of one cell (`users [K, F]`, `cell [C]`) or of n (`users [n, K, F]`, ...).
            state: Handed back: all that is remembered is in the observation.
            episode_start: Ignored for the same reason.
            deterministic: Take the likeliest action rather than one drawn as in training.

        Returns:
            Lengths int64 `[K]`, or numbers in [-1, 1] float32 `[K]` or `[2 K]`; with a leading n
            for a batch.
        """
        users, cell = (np.asarray(observation[key], np.float32) for key in ("users", "cell"))
        single = users.ndim == 2
        if single:
            users, cell = users[None], cell[None]
        with torch.inference_mode():
            outputs = self.network(torch.from_numpy(users), torch.from_numpy(cell)).numpy()
        choose = self._scored if self.head.kind == LENGTHS else self._in_a_box
        actions = choose(outputs, users, deterministic)
        return (actions[0] if single else actions), state

    def lengths(
        self,
        observation: Mapping[str, Any],
        problem: RoundProblem | None = None,
        deterministic: bool = False,
    ) -> Lengths:
        """Draft lengths `[K]` or `[n, K]`, whatever the head.

        Args:
            observation: See `predict`.
            problem: The round; heads that set beliefs need it to plan.
            deterministic: See `predict`.

        Raises:
            ValueError: Beliefs without a problem.
        """
        actions, _ = self.predict(observation, deterministic=deterministic)
        if self.head.kind == LENGTHS:
            return actions
        if self.head.kind in (BELIEFS, TILTS):
            if problem is None:
                raise ValueError("beliefs become lengths only with the problem of the round")
            beliefs = actions[..., : problem.draft_seconds.shape[-1]]
            return belief_plan(problem, beliefs, self.head.longest).lengths
        places = np.shape(observation["users"])[-2]
        return nearest_lengths(actions[..., :places], self.head.longest)

    def _scored(
        self, scores: NDArray[np.float32], users: NDArray[np.float32], deterministic: bool
    ) -> NDArray[Any]:
        noisy = scores if deterministic else scores + self.rng.gumbel(size=scores.shape)
        deciding = users[..., self.head.deciding] > 0
        return np.asarray(np.where(deciding, noisy.argmax(-1), 0), np.int64)

    def _in_a_box(
        self, outputs: NDArray[np.float32], users: NDArray[np.float32], deterministic: bool
    ) -> NDArray[Any]:
        parameters = box_parameters(torch.from_numpy(outputs))
        means, spreads = (numbers.numpy() for numbers in parameters)
        noise = 0.0 if deterministic else np.exp(spreads) * self.rng.normal(size=means.shape)
        if self.squashed_noise:
            actions = np.tanh(means + noise)
        else:
            actions = np.clip(np.tanh(means) + noise, -1.0, 1.0)
        read = np.tile(users[..., self.head.deciding], COMPONENTS[self.head.kind])
        return np.asarray(actions * read, np.float32)


def box_parameters(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Means and logarithms of spreads of actions in a box, before tanh, `[n, components * K]` each.

    All users' first numbers come first, then all second ones, as the environments read them.

    Args:
        outputs: Of a network `[n, K, 2 * components]`.
    """
    means, spreads = outputs.transpose(1, 2).chunk(2, dim=1)
    return means.flatten(1), spreads.flatten(1).clamp(-5.0, 2.0)


def save_scheduler(
    policy: LearnedScheduler,
    arms: Sequence[Arm],
    target: PolicyTarget,
    folder: Path,
    provenance: Mapping[str, Any],
) -> None:
    """Writes the deployable form.

    Args:
        policy: The policy.
        arms: Chains that devices drafted with.
        target: Whose texts it was trained on.
        folder: Where to.
        provenance: How it was made.
    """
    facts = {
        "head": policy.head.kind,
        "longest_draft": policy.head.longest,
        "width": policy.network.outputs.in_features,
        "user_features": list(policy.head.user_features),
        "cell_features": list(policy.head.cell_features),
        "task_acceptance": policy.task_acceptance,
        "squashed_noise": policy.squashed_noise,
        "provenance": dict(provenance),
    }
    write_policy(folder, SCHEDULER, policy.network, arms, target.name, target.fingerprint, facts)


def load_scheduler(folder: Path, target: PolicyTarget) -> LearnedScheduler:
    """Loads an exported scheduler.

    Raises:
        DraftgymError: Not such a folder, damaged files, or a policy of another target.
    """
    keys = {"head", "longest_draft", "width", "user_features", "cell_features", "task_acceptance"}
    stored = read_policy(folder, SCHEDULER, target, keys)
    body = stored.body
    try:
        names = tuple(body["user_features"]), tuple(body["cell_features"])
        head = SchedulerHead(body["head"], int(body["longest_draft"]), *names)
        means = {str(task): float(mean) for task, mean in body["task_acceptance"].items()}
        squashed = bool(body.get("squashed_noise", _was_trained_by_sac(body)))
    except (DraftgymError, TypeError, ValueError, AttributeError) as error:
        reason = error.problem if isinstance(error, DraftgymError) else str(error)
        raise DraftgymError(f"{folder / BODY}: {reason}", AGAIN) from error
    network = stored.load(lambda: head.network(body["width"]))
    name = policy_name(folder)
    return LearnedScheduler(network, head, means, name, squashed_noise=squashed)


def _was_trained_by_sac(body: Mapping[str, Any]) -> bool:
    """What folders of before 0.3 say of their noise: who trained them."""
    return bool(body.get("provenance", {}).get("settings", {}).get("algorithm") == "sac")
