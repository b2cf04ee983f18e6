"""`python -m bloomery.pipelines.quickstart --out DIR`: make the quickstart data and base model."""

from __future__ import annotations

import argparse
from pathlib import Path

from bloomery.pipelines.quickstart.prepare import prepare


def main() -> None:
    """Parse the arguments and prepare the folder."""
    parser = argparse.ArgumentParser(prog="python -m bloomery.pipelines.quickstart", description=__doc__)
    parser.add_argument(
        "--out", type=Path, required=True, help="folder to make; left alone if it is complete"
    )
    parser.add_argument("--seed", type=int, default=17, help="seed of all contents and of the base model")
    arguments = parser.parse_args()
    prepare(arguments.out, arguments.seed)


if __name__ == "__main__":
    main()
