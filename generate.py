"""Write a text by speculative decoding: a policy picks a drafter each round, the target verifies.

    $ python generate.py --prompt "Why is the sky blue?" --stream --stats
    $ python generate.py --prompt "Write a haiku." --policy eagle3:6 --temperature 0.8 --seed 1
    $ cat article.txt | python generate.py --prompt - --policy checkpoints/router-smollm2-135m

The policy changes how fast the text comes, never what it says.
"""

from __future__ import annotations

import tyro

from decoding.errors import exit_on_user_error
from rollouts.generation import GenerateArgs, generate

if __name__ == "__main__":
    with exit_on_user_error():
        generate(tyro.cli(GenerateArgs, description=__doc__))
