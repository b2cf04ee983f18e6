"""The number that a text ends on, in the ways that people and models write one."""

from __future__ import annotations

import re
import unicodedata

_SPACES_IN_NUMBERS = re.compile("(?<=\\d)[_\u00a0\u2009\u202f](?=\\d{3}(?!\\d))")
"""Spaces that do not break and underscores, as thousands separators; a plain space may stand between two numbers."""
_ARABIC = {ord("٫"): ".", ord("٬"): ","}
"""The decimal and the thousands separator of Arabic numbers."""
_APART = re.compile(r"(?<=\d)(?=[¼-¾⅐-⅞]|\\[dt]?frac\{)")
"""Where a whole number ends and a fraction begins."""
_VULGAR = re.compile("[¼-¾⅐-⅞]")
_RAISED = re.compile("[⁰¹²³⁴-⁹⁻]+")
_LATEX = re.compile(r"\\[dt]?frac\{(\d+)\}\{(\d+)\}")
_NUMBER = re.compile(
    r"""(?<!\^)                                             # an exponent is part of the number before it
        (?P<sign>(?<![\w).%])[-+])? (?:[$€£¥₩][ ]?(?P<minus>-)?)?
        (?: (?P<whole>\d+[ ])? (?P<over>\d+)/(?P<under>\d+) (?![\d/])     # 3/4, 1 1/2; not a date
          | (?P<digits> (?<![\d.])\.\d+ | \d[\d.,'’]* )
            (?: [eE](?P<e>[-+]?\d+)(?!\w) | [ ]?[×x*][ ]?10\^\{?(?P<power>-?\d+)\}? )? )""",
    re.VERBOSE,
)
_POINT = re.compile(r"\d*\.?\d+")
_GROUPS = re.compile(r"[1-9]\d{0,2}(?:(?:,\d{2})*(?:,\d{3})+|(?:['’]\d{3})+)(?:\.\d+)?")
"""1,036 and 1,036.5, also 1,00,000 and 1'036."""
_DOTTED_GROUPS = re.compile(r"[1-9]\d{0,2}(?:(?:\.\d{3})+,\d+|(?:\.\d{3}){2,})")
"""1.036,5 and 1.036.000; 1.036 alone is a little more than one."""
_COMMA = re.compile(r"\d+,\d+")


def last_number(text: str) -> float | None:
    """Value of the last number in `text`; None if there is none.

    Read are thousands separators (1,036 · 1.036,5 · 1'036), a decimal comma where it can be no thousands separator
    (3,5), a sign of any kind (−4), the digits of every script, currencies ($521, -$5), powers (1e3, 2×10⁵),
    fractions (3/4, 1½). Units, a per cent sign and full stops after it say nothing: 50% is 50. A digit behind a letter
    (m2, CO2) is part of a name, and counts only where there is no other number. Lists (1,2,3), versions and dates with
    dots are no numbers.
    """
    text = re.sub("[^\\D0-9]", lambda found: str(unicodedata.digit(found[0])), text.translate(_ARABIC))
    text = _SPACES_IN_NUMBERS.sub("", text)
    text = _VULGAR.sub(lambda found: unicodedata.normalize("NFKC", found[0]).replace("⁄", "/"), _APART.sub(" ", text))
    text = _RAISED.sub(lambda found: "^" + unicodedata.normalize("NFKC", found[0]), text)
    text = _LATEX.sub(r"\1/\2", unicodedata.normalize("NFKC", text))
    text = re.sub("[−–‐](?=[$€£¥₩]?[ ]?[.\\d])", "-", text)
    values = [
        (value, found.start() > 0 and text[found.start() - 1].isascii() and text[found.start() - 1].isalpha())
        for found in _NUMBER.finditer(text)
        if (value := _value(found)) is not None
    ]
    alone = [value for value, is_glued in values if not is_glued] or [value for value, _ in values]
    return alone[-1] if alone else None


def _value(found: re.Match[str]) -> float | None:
    sign = -1.0 if "-" in (found["sign"], found["minus"]) else 1.0
    if found["under"]:
        under = float(found["under"])
        return sign * (float(found["whole"] or 0) + float(found["over"]) / under) if under else None
    digits = found["digits"].rstrip(".,'’")
    if _GROUPS.fullmatch(digits):
        digits = re.sub("[,'’]", "", digits)
    elif _DOTTED_GROUPS.fullmatch(digits):
        digits = digits.replace(".", "").replace(",", ".")
    elif _COMMA.fullmatch(digits):
        digits = digits.replace(",", ".")
    elif not _POINT.fullmatch(digits):
        return None
    return sign * float(f"{digits}e{found['e'] or found['power'] or 0}")
