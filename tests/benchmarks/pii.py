"""Precision and recall of the masking of personal data on a labelled set, by kind.

    python tests/benchmarks/pii.py

`tests/data/pii.txt` holds one text a line, in English and Korean; ⟦kind:value⟧ marks what has to be masked. The lines
without a mark are look-alikes: dates, versions, order numbers, digests, ranges. All data in it are made up.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from bloomery.components.core.data import pii

LABELLED = Path(__file__).parents[1] / "data" / "pii.txt"
_MARK = re.compile(r"⟦(\w+):([^⟧]*)⟧")


def main() -> None:
    """Print the table."""
    right, wanted, masked, wrong_lines = compare()
    print(f"{'kind':12} {'wanted':>7} {'masked':>7} {'recall':>7} {'precision':>9}")
    for kind in sorted(wanted):
        recall, precision = right[kind] / wanted[kind], right[kind] / max(1, masked[kind])
        print(f"{kind:12} {wanted[kind]:7} {masked[kind]:7} {recall:7.3f} {precision:9.3f}")
    print(*wrong_lines, sep="\n")


def compare() -> tuple[Counter[str], Counter[str], Counter[str], list[str]]:
    """(rightly masked, wanted, masked by kind, lines that came out otherwise than marked)."""
    right, wanted, masked, wrong_lines = Counter(), Counter(), Counter(), []
    for line in LABELLED.read_text(encoding="utf-8").splitlines():
        text = _MARK.sub(lambda match: match[2], line)
        expected = _MARK.sub(lambda match: pii.PLACEHOLDERS[match[1]], line)
        hidden, secrets = pii.mask_secrets(text)
        found, personal = pii.mask(hidden)
        kinds = Counter(match[1] for match in _MARK.finditer(line))
        wanted += kinds
        masked += secrets + personal
        if found == expected:
            right += kinds
        else:
            wrong_lines.append(f"{expected}\n  came out as {found}")
            right += Counter({kind: min(kinds[kind], (secrets + personal)[kind]) for kind in kinds})
    return right, wanted, masked, wrong_lines


if __name__ == "__main__":
    main()
