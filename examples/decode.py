"""Write a text with a policy, and print every round.

$ python examples/decode.py
$ python examples/decode.py --policy eagle3:4 --prompt "Name three fruits as JSON."
$ python examples/decode.py --target Qwen/Qwen3-0.6B --policy ngram:8

The policy changes the rounds, never the text.
"""

from __future__ import annotations

from pathlib import Path

import tyro

from draftgym import SpeculativeDecoder, load_drafters, load_target, make_policy


def main(
    prompt: str = "Write a Python function that reverses a string.",
    policy: str = "router",
    target: str = "smollm2-135m",
    drafters: tuple[Path, ...] = (),
    max_new_tokens: int = 48,
) -> None:
    """Writes the text and prints what each round drafted and what the target kept of it.

    Args:
        prompt: What to say to the model.
        policy: Who chooses the arm of each round; see `draftgym generate --help`.
        target: An embedded target, a Hugging Face folder, a Hub id or a .gguf file.
        drafters: Checkpoints beside the shipped ones.
        max_new_tokens: Tokens to write at most.
    """
    model = load_target(target, dtype="float32")
    loaded = load_drafters(model, drafters)
    chooser = make_policy(policy, loaded, model)
    result = SpeculativeDecoder(model, loaded, chooser).generate(prompt, max_new_tokens)
    for number, decoded in enumerate(result.rounds, 1):
        played = decoded.record
        drafted, committed = (
            "|".join(model.decode([token]) for token in tokens)
            for tokens in (played.drafted, played.committed)
        )
        print(f"{number:3} {played.arm!s:11} drafted {drafted!r}, committed {committed!r}")
    print(model.decode(result.tokens))
    print(f"{len(result.tokens)} tokens, {result.acceptance_length:.2f} a round")


if __name__ == "__main__":
    tyro.cli(main)
