"""Personal data and secrets, found by form and check digit and replaced by a typed placeholder.

`\\b` is useless here: Hangul counts as a word character, so an address with a particle (`a@b.kr로`) has no
boundary. Every pattern is fenced by lookarounds over digits and Latin letters instead. Names are not found.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from datetime import date

PLACEHOLDERS = {
    "email": "[EMAIL]",
    "phone": "[PHONE]",
    "card": "[CARD]",
    "ip": "[IP]",
    "rrn": "[RRN]",
    "brn": "[BRN]",
    "account": "[ACCOUNT]",
    "key": "[KEY]",
    "credentials": "[CREDENTIALS]",
}
"""Placeholder by kind; `rrn` and `brn` are the Korean resident and business registration numbers."""

_SECRET = re.compile(
    r"""
    (?P<credentials> (?<=://)[^\s/:@"'<>\[\]{}]{1,64}:[^\s/@"'<>\[\]{}]{1,128}(?=@[A-Za-z0-9\[]) )
  | (?<![A-Za-z0-9_-])
    (?P<key>
        (?:AKIA|ASIA)[A-Z0-9]{16}
      | gh[pousr]_[A-Za-z0-9]{36,} | github_pat_[A-Za-z0-9_]{22,} | glpat-[A-Za-z0-9_-]{20,}
      | sk-(?=[A-Za-z0-9_-]*\d)[A-Za-z0-9_-]{20,} | [rs]k_(?:live|test)_[A-Za-z0-9]{16,} | hf_[A-Za-z0-9]{30,}
      | AIza[A-Za-z0-9_-]{35} | xox[abeoprs]-[A-Za-z0-9-]{10,}
      | eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}
    )
    (?![A-Za-z0-9_-])
  | (?P<pem> -----BEGIN[ ](?:[A-Z]+[ ])?PRIVATE[ ]KEY-----.{1,8000}?-----END[ ](?:[A-Z]+[ ])?PRIVATE[ ]KEY----- )
    """,
    re.VERBOSE | re.DOTALL,
)
# One of these stands in whatever the pattern finds; looking for them is fifty times as fast.
_SECRET_MARKS = (
    *("AKIA", "ASIA", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "sk-", "sk_", "rk_", "hf_"),
    *("AIza", "xox", "eyJ", "PRIVATE KEY", "://"),
)

_EMAIL = re.compile(
    r"""
    (?<![A-Za-z0-9._%+-])(?<!://)[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}
    @(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24}(?![A-Za-z0-9])
    """,
    re.VERBOSE,
)
_IPV6 = re.compile(r"(?<![\dA-Za-z.:])[0-9A-Fa-f]{1,4}(?::[0-9A-Fa-f]{0,4}){4,7}(?![\dA-Za-z:])")
_MAYBE_IPV6 = re.compile(r":[0-9A-Fa-f]{0,4}:")
_NUMBER = re.compile(
    r"""
    (?=[\d+(A-Z계a])  # most letters begin nothing, and are passed over at the cost of one look
    (?: (?P<account>
        (?P<cue>
            (?:계좌(?:[ ]?번호)?|[Aa]ccount(?:[ ](?:[Nn]umber|[Nn]o\.?))?)
            [는은이가:]?[ ]?(?:[가-힣A-Za-z]{2,8}[ ])?
        )
        (?: \d{2,6}(?:-\d{2,8}){1,3} | \d{10,14} )(?![\d-])
      | (?<![A-Za-z0-9])[A-Z]{2}\d{2}(?:[ ]?[A-Z0-9]{4}){3,7}(?:[ ]?[A-Z0-9]{1,3})?(?![A-Za-z0-9])
    )
  | (?P<brn> (?<![\d.-])\d{3}-\d{2}-\d{5}(?![\d-]) )
  | (?P<rrn> (?<![\d.-])\d{6}[ ]?-?[ ]?[1-8]\d{6}(?![\d-]) )
  | (?P<card>
        (?<![\d.-])(?<!\d[ ])[2-6]\d{3}
        (?: (?P<fours>[ -]?)\d{4}(?P=fours)\d{4}(?P=fours)\d{1,7} | (?P<amex>[ -])\d{6}(?P=amex)\d{5} )
        (?![\d-])(?![ ]\d)
    )
  | (?P<ip> (?<![\dA-Za-z.:])(?<!ersion[ ])(?<!버전[ ])\d{1,3}(?:\.\d{1,3}){3}(?!\d|\.\d) )
  | (?P<phone>
        (?<![\dA-Za-z./+-])
        (?: \+82[ .-]?(?:\(0\))?0?(?:1[016789]|2|[3-6]\d|70)[ .-]?\d{3,4}[ .-]?\d{4}
          | \+[1-9]\d{0,2}[ .-]?\(?\d{1,4}\)?(?:[ .-]?\d{2,4}){2,4}
          | 01[016789](?P<mobile>[ .-]?)\d{3,4}(?P=mobile)\d{4}
          | \(?0(?:2|[3-6]\d|70|80|50\d)\)?[ .-]\d{3,4}[ .-]\d{4}
          | \([2-9]\d{2}\)[ ]?[2-9]\d{2}[ .-]\d{4}
          | [2-9]\d{2}(?P<us>[ .-])[2-9]\d{2}(?P=us)\d{4}
        )
        (?![\d-])(?!\.\d)
    ) )
    """,
    re.VERBOSE,
)
# What every number holds: three digits in a row, or one after a plus or beside a dot.
_MAYBE_NUMBER = re.compile(r"\d(?:\d\d|\.\d)|\+\d")


def mask_secrets(text: str) -> tuple[str, Counter[str]]:
    """(`text` with placeholders for keys and passwords in addresses, number masked by kind); also right for code."""
    found: Counter[str] = Counter()
    if not any(mark in text for mark in _SECRET_MARKS):
        return text, found

    def replace(match: re.Match[str]) -> str:
        kind = "credentials" if match["credentials"] else "key"
        found[kind] += 1
        return PLACEHOLDERS[kind]

    return _SECRET.sub(replace, text), found


def mask(text: str) -> tuple[str, Counter[str]]:
    """(`text` with placeholders for personal data, number masked by kind)."""
    found: Counter[str] = Counter()

    def replace(match: re.Match[str]) -> str:
        kind = _kind(match)
        if not kind:
            return match.group()
        found[kind] += 1
        return (match["cue"] or "") + PLACEHOLDERS[kind]

    def replace_address(match: re.Match[str]) -> str:
        if not is_personal_address(match.group()):
            return match.group()
        found["ip"] += 1
        return PLACEHOLDERS["ip"]

    if "@" in text:
        text, found["email"] = _EMAIL.subn(PLACEHOLDERS["email"], text)
    if _MAYBE_IPV6.search(text):
        text = _IPV6.sub(replace_address, text)
    if _MAYBE_NUMBER.search(text):
        text = _NUMBER.sub(replace, text)
    return text, +found


def _kind(match: re.Match[str]) -> str:
    """The kind of a match that its check digit or value confirms, or ''."""
    value = match.group()
    digits = "".join(character for character in value if character.isdigit())
    if match["rrn"]:
        # Thirteen digits may be both: a resident number written whole, or a card number of the old length.
        if is_resident_number(digits) or (("-" in value) and has_birth_date(digits)):
            return "rrn"
        return "card" if "-" not in value and is_card_number(digits) else ""
    if match["card"]:
        return "card" if is_card_number(digits) else ""
    if match["brn"]:
        return "brn" if is_business_number(digits) else ""
    if match["account"]:
        is_account = 10 <= len(digits) <= 14 if match["cue"] else is_iban(value)
        return "account" if is_account else ""
    if match["ip"]:
        return "ip" if is_personal_address(value) else ""
    return "phone"


def is_card_number(digits: str) -> bool:
    """True for 13 to 19 digits with a valid Luhn check digit (ISO/IEC 7812-1)."""
    if not 13 <= len(digits) <= 19 or len(set(digits)) == 1:
        return False
    doubled = [int(digit) * (1 + index % 2) for index, digit in enumerate(reversed(digits))]
    return sum(number - 9 if number > 9 else number for number in doubled) % 10 == 0


def is_resident_number(digits: str) -> bool:
    """True for a birth date, a century digit and a valid check digit.

    Numbers given out since October 2020 carry no check digit; they are known by date and hyphen alone.
    """
    weights = (2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5)
    total = sum(int(digit) * weight for digit, weight in zip(digits, weights, strict=False))
    # Foreigners' numbers (century digits 5 to 8) add 2 to the check digit.
    expected = (11 - total % 11 + (2 if digits[6] in "5678" else 0)) % 10
    return has_birth_date(digits) and int(digits[12]) == expected


def has_birth_date(digits: str) -> bool:
    """True if the first seven digits are a date and a century digit."""
    century = 1900 if digits[6] in "1256" else 2000
    try:
        date(century + int(digits[:2]), int(digits[2:4]), int(digits[4:6]))
    except ValueError:
        return False
    return True


def is_business_number(digits: str) -> bool:
    """True for ten digits with a valid check digit (National Tax Service of Korea)."""
    weights = (1, 3, 7, 1, 3, 7, 1, 3, 5)
    total = sum(int(digit) * weight for digit, weight in zip(digits, weights, strict=False)) + int(digits[8]) * 5 // 10
    return (10 - total % 10) % 10 == int(digits[9])


def is_iban(value: str) -> bool:
    """True for a valid check sum (ISO 13616)."""
    plain = value.replace(" ", "")
    return int("".join(str(int(character, 36)) for character in plain[4:] + plain[:4])) % 97 == 1


def is_personal_address(value: str) -> bool:
    """True for an IP address that can belong to somebody: no loopback, wildcard, multicast or netmask."""
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        return False
    is_mask = address.version == 4 and int(address) >> 24 == 255
    return not (address.is_loopback or address.is_unspecified or address.is_multicast or is_mask)
