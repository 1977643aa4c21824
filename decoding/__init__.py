"""The decoding loop: session, round, decoder, and what they rest on.

Rooms: `model` (the target and its arithmetic), `verify` (proposals and the rules that accept them),
`costs` (what the pieces of a round cost on this host), `observers` (what a policy sees), `text`
(turns, stops, and pieces of what is written).
"""
