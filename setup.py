"""Where the packages lie: `draftgym.envs` is the folder `envs/`, and so on.

`draftgym/envs` and its like are links, through which a checkout, mypy and editors see one package;
this table makes wheels, archives and editable installs right where links are missing, too.
"""

from pathlib import Path

from setuptools import find_packages, setup

ROOMS = ("agents", "decoding", "drafters", "envs", "policies", "rollouts", "serving")
WEIGHTS = sorted(
    f"checkpoints.{path.parent.name}" for path in Path("checkpoints").glob("*/README.md")
)

setup(
    packages=[
        "draftgym",
        "draftgym.hub",
        *(f"draftgym.{room}" for room in ROOMS),
        *(f"draftgym.{room}.{inner}" for room in ROOMS for inner in find_packages(room)),
        *(f"draftgym.{folder}" for folder in ("checkpoints", *WEIGHTS)),
    ],
    package_dir={"draftgym": "draftgym"}
    | {f"draftgym.{room}": room for room in (*ROOMS, "checkpoints")},
)
