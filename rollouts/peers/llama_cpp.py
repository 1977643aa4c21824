"""llama.cpp, through llama-cpp-python: each GGUF file plain, and with its own prompt lookup."""

from __future__ import annotations

from typing import Any

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.prompts.text import one_line
from draftgym.rollouts.peers.gguf_files import GGUFFile, weight_files
from draftgym.rollouts.peers.peer import Conditions, Peer, Write

LOOKUP_TOKENS = 2
"""Of its prompt lookup: what its own README advises for processors (10 is its default)."""


def load(conditions: Conditions) -> list[Peer]:
    """Its rows: the target's numbers and the file as published, plain and with lookup.

    The numbers in float16 are half the bytes; it then rounds what it multiplies with them.

    Raises:
        DraftgymError: There is no GGUF file of the target, or llama.cpp cannot read it.
    """
    import llama_cpp
    from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

    peers = []
    for file in weight_files(conditions.target, conditions.gguf, "F32", "F16"):
        drafting = LlamaPromptLookupDecoding(num_pred_tokens=LOOKUP_TOKENS)
        for name, draft_model in {"": None, " lookup": drafting}.items():
            write = _writer(_model(llama_cpp.Llama, file, conditions, draft_model), conditions)
            named = f"llama.cpp {file.kind}{name}"
            peers.append(Peer(named, llama_cpp.__version__, file.weights, write))
    return peers


def _model(make: Any, file: GGUFFile, conditions: Conditions, draft_model: Any) -> Any:
    """A model that computes logits where a token is chosen, and nowhere else."""
    threads = conditions.target.precision.threads
    try:
        return make(
            str(file.path),
            n_ctx=conditions.context,
            n_threads=threads,
            n_threads_batch=threads,
            flash_attn=True,
            draft_model=draft_model,
            verbose=False,
        )
    except (RuntimeError, ValueError) as error:
        raise DraftgymError(
            f"llama.cpp cannot load {file.path}: {one_line(error)}",
            "leave llama.cpp out of --against, or install a newer llama-cpp-python",
        ) from error


def _writer(model: Any, conditions: Conditions) -> Write:
    def write(ids: list[int], max_new_tokens: int) -> list[int]:
        model.reset()  # or it would keep what the prompt before began with
        tokens: list[int] = []
        for token in model.generate(ids, temp=0.0):
            tokens.append(int(token))
            if token in conditions.stop_tokens or len(tokens) == max_new_tokens:
                break
        return tokens

    return write
