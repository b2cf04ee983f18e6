"""pip's report of a resolution as a lock file: `lock.py REPORT > FILE`; standard library alone, `make lock` runs it.

Every line is one version of one file, by its hash: `pip install --no-deps --require-hashes` then decides nothing. The
files are those of Python 3.11 on Linux x86-64, which is what the images are; elsewhere constraints.txt names the same
versions. Where a file comes from is the machine's own pip configuration.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

LEFT_OUT = {
    "bloomery": "the image builds it",
    "matplotlib": "mlflow's plots, which nothing of ours draws",
    "contourpy": "matplotlib's",
    "cycler": "matplotlib's",
    "fonttools": "matplotlib's",
    "kiwisolver": "matplotlib's",
    "pillow": "matplotlib's; no step sees a picture",
    "statsmodels": "evidently names it and imports it nowhere",
    "formulaic": "statsmodels'",
    "interface-meta": "statsmodels'",
    "patsy": "statsmodels'",
}
"""What the resolution holds and the images do not, and why; `pip check` in an image tells of the two that are named."""


def lines(report: dict[str, Any]) -> list[str]:
    """A line `name==version --hash=sha256:…` for each file of a report of `pip install --dry-run --report`, by name.

    Raises: ValueError if a file has no hash.
    """
    found = {}
    for entry in report["install"]:
        name = re.sub(r"[-_.]+", "-", entry["metadata"]["name"]).lower()
        if name in LEFT_OUT:
            continue
        version = entry["metadata"]["version"]
        digest = entry["download_info"].get("archive_info", {}).get("hashes", {}).get("sha256")
        if digest is None:
            raise ValueError(f"{name} {version}: pip's report has no hash of it; take it from an index")
        # `==` would also mean a local build such as +cpu, which has another hash.
        found[name] = f"{name}{'==' if '+' in version or name != 'torch' else '==='}{version} --hash=sha256:{digest}"
    return [found[name] for name in sorted(found)]


if __name__ == "__main__":
    print("# `make lock` wrote it: what an image holds, for Python 3.11 on Linux x86-64; see lock.py.")
    print(*lines(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))), sep="\n")
