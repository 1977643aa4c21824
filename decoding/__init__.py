"""The decoding loop: target, cache, verification, session, round, decoder, cost model."""
