"""What a Python environment is made of, as CycloneDX JSON: `python -m bloomery.infra.bill`; `--licences`: a table."""

from __future__ import annotations

import json
import re
import sys
from importlib.metadata import Distribution, distributions
from typing import Any

UNKNOWN = "not stated"


def licence(distribution: Distribution) -> str:
    """The licence that a distribution states: an SPDX expression, the classifiers, or its own words, in this order."""
    stated = distribution.metadata
    if expression := stated.get("License-Expression"):
        return str(expression)
    classifiers = [line.split(" :: ")[-1] for line in stated.get_all("Classifier", []) if line.startswith("License ::")]
    told = [name for name in classifiers if name != "OSI Approved"]
    own = str(stated.get("License") or "").strip()
    return " and ".join(told) or (own if own and "\n" not in own and len(own) < 80 else UNKNOWN)


def bill() -> dict[str, Any]:
    """The distributions of this environment as a bill of materials, CycloneDX 1.6."""
    found = {}
    for one in distributions():
        name = re.sub(r"[-_.]+", "-", one.metadata["Name"]).lower()
        found[name] = {
            "type": "library",
            "name": name,
            "version": one.version,
            "purl": f"pkg:pypi/{name}@{one.version}",
            "licenses": [{"license": {"name": licence(one)}}],
        }
    components = [found[name] for name in sorted(found)]
    return {"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1, "components": components}


if __name__ == "__main__":
    told = bill()
    if sys.argv[1:] == ["--licences"]:
        for part in told["components"]:
            print(f"{part['name']:<32} {part['version']:<20} {part['licenses'][0]['license']['name']}")
    else:
        json.dump(told, sys.stdout, indent=1)
