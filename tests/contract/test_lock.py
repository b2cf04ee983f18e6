"""The locked versions are those that the ranges allow, for every machine."""

from __future__ import annotations

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


def test_every_requirement_is_locked_inside_its_range() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = [
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["test"],
        *project["build-system"]["requires"],
        "pip",
        "psycopg2-binary",  # the image's
    ]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    locked = {}
    for requirement in (Requirement(line) for line in lines if not line.startswith("#")):
        (pin,) = requirement.specifier
        assert pin.operator == "==" and "+" not in pin.version, f"{requirement}: one version, of any build"
        assert requirement.url is None and requirement.marker is None
        locked[canonicalize_name(requirement.name)] = pin.version
    for requirement in map(Requirement, wanted):
        version = locked.get(canonicalize_name(requirement.name))
        assert version and requirement.specifier.contains(version), f"{requirement}, locked is {version}: `make lock`"
    assert "bloomery" not in locked
