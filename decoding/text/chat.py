"""A talk of several turns with one decoder, the cache kept between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from draftgym.decoding.decoder import Generation, Memory, SpeculativeDecoder
from draftgym.decoding.model.prompts.messages import Message, as_messages
from draftgym.decoding.text.stops import Stops


class Chat:
    """What was said so far; every answer stands behind the target's own earlier ones.

    A turn's messages are written by the chat template anew (templates change earlier turns, as by
    taking thoughts out), and as many positions as begin with the same tokens are kept: the target's
    keys and values, the taps, the drafters' states.

    Example:
        >>> chat = Chat(decoder, system="Be brief.")  # doctest: +SKIP
        >>> chat.say("Why is the sky blue?", max_new_tokens=64).reused  # doctest: +SKIP
        0
        >>> chat.say("And red at night?").reused  # doctest: +SKIP
        103

    Args:
        decoder: Target, drafters and policy.
        system: What the model is told before the first turn.
        template_options: What the chat template reads beside the messages (`Target.encode`).

    Attributes:
        messages: All messages, the answers included.
    """

    def __init__(
        self,
        decoder: SpeculativeDecoder,
        system: str | None = None,
        template_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.decoder, self.template_options = decoder, dict(template_options or {})
        self.messages: list[Message] = []
        if system is not None:
            self.messages.append({"role": "system", "content": system})
        self._memory = Memory()

    def say(
        self,
        text: str,
        stops: Stops | None = None,
        images: Sequence[Any] = (),
        **settings: Any,
    ) -> Generation:
        """Says something and lets the target answer.

        Args:
            text: The user's turn.
            stops: What ends the answer beside the target itself.
            images: What the user shows with it: paths, or images of Pillow.
            **settings: Of `SpeculativeDecoder.generate`.

        Raises:
            DraftgymError: As `generate`; the talk is then as it was before.
        """
        messages = [*self.messages, *as_messages(text, images)]
        stops = stops or Stops()
        result = self.decoder.generate(
            messages if len(messages) > 1 or images else text,
            stops=stops,
            template_options=self.template_options,
            memory=self._memory,
            **settings,
        )
        answer = stops.cut(self.decoder.target.decode(result.tokens))
        self.messages = [*messages, {"role": "assistant", "content": answer}]
        return result
