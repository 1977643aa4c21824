"""Trace real decoding, train a router on the traces, and write a text with it.

$ python examples/train_and_deploy.py
$ python examples/train_and_deploy.py --limit-per-category 30 --rounds 500000

Started again, each step goes on where it was interrupted.
"""

from __future__ import annotations

from pathlib import Path

import tyro

import draftgym as dg


def main(
    target: str = "smollm2-135m",
    drafters: tuple[Path, ...] = (),
    arms: tuple[str, ...] = ("eagle3:2", "eagle3:3x6", "dflash:2", "ngram:8", "ngram:16"),
    prompts: str = "train",
    limit_per_category: int = 4,
    max_new_tokens: int = 64,
    rounds: int = 100_000,
    out: Path = Path("runs/example"),
) -> None:
    """Trains a router and deploys it.

    Args:
        target: An embedded target, a Hugging Face folder, a Hub id or a .gguf file.
        drafters: Checkpoints beside the shipped ones.
        arms: What the router chooses from; `plain` is added.
        prompts: A prompt set, or a JSON-lines file.
        limit_per_category: How many prompts of each category.
        max_new_tokens: Token limit of a text.
        rounds: Rounds to train for.
        out: Folder of traces and router.
    """
    common = {"target": target, "drafters": drafters, "max_new_tokens": max_new_tokens}
    wanted = {"arms": arms, "prompts": prompts, "limit_per_category": limit_per_category}
    dg.collect(dg.CollectArgs(out=out / "traces", dtype="float32", **common, **wanted))
    args = dg.RouterArgs(traces=out / "traces", run=out / "router", rounds=rounds)
    folder = dg.train_router(args)  # safetensors and JSON: what is deployed
    model = dg.load_target(target, dtype="float32")
    loaded = dg.load_drafters(model, drafters)
    decoder = dg.SpeculativeDecoder(model, loaded, dg.make_policy(str(folder), loaded, model))
    result = decoder.generate("Why is the sky blue?", max_new_tokens)
    print(model.decode(result.tokens))
    print(f"{len(result.tokens)} tokens, {result.acceptance_length:.2f} a round")


if __name__ == "__main__":
    tyro.cli(main)
