"""Small LMs on disk: an ordinary Hugging Face folder, which transformers loads too.

A distilled small LM shares its target's embedding and tokenizer. Its folder holds both, so that
`generate(assistant_model=...)` takes it like any model; our additions sit under the config key
`draftgym`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from decoding.target import Target


def save_small_lm(network: Any, folder: Path, target: Target) -> None:
    """Writes a transformers causal LM in bfloat16 with the target's tokenizer; a kill leaves the
    older files whole.

    Args:
        network: The small LM.
        folder: Where to.
        target: What it was distilled from; its name and fingerprint are recorded.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    network.config.dtype = torch.bfloat16
    network.config.draftgym = {"target": target.name, "target_fingerprint": target.fingerprint}
    weights = {name: value.to(torch.bfloat16) for name, value in network.state_dict().items()}
    if network.config.tie_word_embeddings:
        weights.pop("lm_head.weight")
    network.save_pretrained(partial, state_dict=weights)
    if target.tokenizer is not None:
        target.tokenizer.save_pretrained(partial)
    folder.mkdir(parents=True, exist_ok=True)
    for path in partial.iterdir():
        path.replace(folder / path.name)
    partial.rmdir()
