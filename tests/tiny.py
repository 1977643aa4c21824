"""Tiny randomly initialised targets and drafters, so that promises are tested in milliseconds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import transformers

from draftgym.decoding.costs.calibration import calibrate, measured_host
from draftgym.decoding.costs.cost_model import CostModel
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.model.compact.transformer import Decoder
from draftgym.decoding.model.precision import Precision
from draftgym.decoding.model.target import Target, wrap_model
from draftgym.drafters.dflash.drafter import DFlashDrafter
from draftgym.drafters.dflash.network import DFlashConfig, DFlashNetwork
from draftgym.drafters.eagle3.drafter import Eagle3Drafter
from draftgym.drafters.eagle3.network import Eagle3Config, Eagle3Network
from draftgym.drafters.ngram.drafter import NgramDrafter
from draftgym.drafters.small_lm.drafter import SmallLMDrafter
from draftgym.rollouts.prompts.sets import Prompt

VOCAB = 61
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": None,  # texts run to the token limit unless a test says otherwise
    "pad_token_id": 2,
}
LEFT_OUT = {"falcon": ("head_dim",)}
"""What some configurations compute themselves."""
ONE_THREAD = Precision("float32", 1, "tests")


def tiny_model(kind: str = "llama", seed: int = 0, **changes: Any) -> Any:
    """A random transformers causal LM of a kind (`llama`, `gemma2`, ...)."""
    torch.manual_seed(seed)
    settings = SIZES | {"head_dim": 8} | changes
    said = {name: value for name, value in settings.items() if name not in LEFT_OUT.get(kind, ())}
    config = transformers.AutoConfig.for_model(kind, **said)
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name:
                weight.normal_(std=0.15)  # the default init is so flat that every text is alike
    return model


def tiny_target(
    kind: str = "llama", seed: int = 0, *, device: str = "cpu", **changes: Any
) -> Target:
    """A tiny target without a tokenizer."""
    precision = replace(ONE_THREAD, device=device)
    return wrap_model(tiny_model(kind, seed, **changes), None, f"tiny-{kind}", precision)


def _sizes(target: Target) -> dict[str, Any]:
    shape = target.decoder.shape
    return {
        "hidden_size": shape.hidden,
        "intermediate_size": 48,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "rms_norm_eps": shape.eps,
        "vocab_size": shape.vocab,
        "max_position_embeddings": 256,
        "rope_parameters": target.rope_parameters,
    }


def tiny_eagle3(
    target: Target,
    seed: int = 1,
    draft_vocab: int = 40,
    tap_layers: tuple[int, ...] = (1, 2, 4),
) -> Eagle3Drafter:
    """An untrained EAGLE-3 head whose fc and LM head copy the target's opinion a little."""
    torch.manual_seed(seed)
    config = Eagle3Config(
        **_sizes(target),
        target_hidden_size=target.hidden_size,
        draft_vocab_size=draft_vocab,
        tap_layers=tap_layers,
    )
    network = Eagle3Network(config, torch.arange(draft_vocab))
    with torch.no_grad():
        network.lm_head.weight.copy_(target.decoder.head[:draft_vocab])
        network.fc.weight[:, -target.hidden_size :] += torch.eye(target.hidden_size)
    network.to(target.device).requires_grad_(False)
    return Eagle3Drafter(network, target.decoder.embedding)


def tiny_dflash(target: Target, seed: int = 2, block_size: int = 5) -> DFlashDrafter:
    """An untrained DFlash drafter."""
    torch.manual_seed(seed)
    config = DFlashConfig(
        **_sizes(target),
        num_hidden_layers=2,
        draft_vocab_size=target.vocab_size,
        tap_layers=(0, 3, 5),
        block_size=block_size,
        mask_token_id=3,
    )
    network = DFlashNetwork(config).to(target.device).requires_grad_(False)
    return DFlashDrafter(network, target.decoder.embedding, target.decoder.head)


def tiny_small_lm(target: Target) -> SmallLMDrafter:
    """A small LM that has most of the target's layers, so that they often agree."""
    whole = target.compact
    kept = [*range(whole.shape.layers - 2), whole.shape.layers - 1]
    ropes = tuple(whole.shape.ropes[layer] for layer in kept) if whole.shape.ropes else ()
    windows = tuple(whole.windows[layer] for layer in kept)
    shape = replace(whole.shape, layers=len(kept), ropes=ropes, windows=windows)
    parts = (whole.embedding, whole.final_norm, whole.head, whole.rotaries)
    return SmallLMDrafter(Decoder(shape, [whole.layers[layer] for layer in kept], *parts))


def tiny_drafters(target: Target) -> dict[str, Drafter]:
    """One drafter of each kind, by name."""
    neural = (tiny_eagle3(target), tiny_dflash(target), tiny_small_lm(target))
    made = (*neural, NgramDrafter(shortest=1))
    return {drafter.name: drafter for drafter in made}


_measured: dict[str, CostModel] = {}


def tiny_costs(target: Target, drafters: Mapping[str, Drafter]) -> CostModel:
    """What rounds of tiny models cost on this host, measured once for all tests."""
    of = json.dumps(measured_host(target, drafters), sort_keys=True)
    if of not in _measured:
        _measured[of] = calibrate(target, drafters, repeats=1, contexts=(16, 64))
    return _measured[of]


PROMPTS = [Prompt(f"p{i}", "chat", (f"{i}",)) for i in range(4)]
"""Prompts that a `NumberedTarget` reads."""

ARMS = ("eagle3:3", "dflash:4x8", "ngram:4", "plain")
"""Arms for the tiny drafters."""


class NumberedTarget(Target):
    """A tiny target whose prompts are numbers that seed token ids."""

    def encode(self, prompt: str) -> torch.Tensor:
        """Six random ids."""
        return torch.randint(4, 60, (6,), generator=torch.Generator().manual_seed(int(prompt)))


def numbered_target(target: Target) -> NumberedTarget:
    """The same target, reading numbers."""
    return NumberedTarget(**vars(target))
