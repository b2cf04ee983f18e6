"""Personal data and secrets, found by form and check digit and replaced by a typed placeholder.

`\\b` is useless here: Hangul counts as a word character, so an address with a particle (`a@b.kr로`) has no
boundary. Every pattern is fenced by lookarounds over digits and Latin letters instead. Names are not found.

A number alone proves little: one barcode in ten passes Luhn, and every version of four parts is an IP address. So its
form has to fit (issuers and lengths of cards, area codes, calling codes), and where others share the form, what stands
before it decides.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Collection
from datetime import date
from typing import Literal, get_args

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

Kind = Literal["email", "phone", "card", "ip", "rrn", "brn", "account", "key", "credentials"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""Every kind."""

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
_IPV6 = re.compile(
    r"""
    (?<![\dA-Za-z.:])
    (?: [0-9A-Fa-f]{1,4}(?::[0-9A-Fa-f]{0,4}){4,7}
      | (?:[23][0-9A-Fa-f]{3}|[Ff][CDcd][0-9A-Fa-f]{2}|[Ff][Ee]80)(?::[0-9A-Fa-f]{1,4}){0,2}::[0-9A-Fa-f]{1,4}
    )
    (?![\dA-Za-z:])
    """,
    re.VERBOSE,
)
"""Addresses with most of their groups, and short ones such as 2001:db8::1 in the blocks that are given out."""
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
          | 01[016789](?P<mobile>[ .‐‑–-]?)\d{3,4}(?P=mobile)\d{4}
          | \(?0(?:2|[3-6]\d|70|80|50\d)(?:\)[ .‐‑–-]?|[ .‐‑–-])\d{3,4}[ .‐‑–-]\d{4}
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


_CONTEXT_CHARACTERS = 48
_ISSUED = re.compile(
    r"4\d{12}(?:\d{3}|\d{6})?|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}"
    r"|3(?:0[0-5]|[689]\d)\d{11}|35(?:2[89]|[3-8]\d)\d{12}|6(?:011|4[4-9]\d|5\d\d)\d{12}|62\d{14,17}"
    r"|[56]\d{15}"
)
# Country calling codes (ITU-T E.164), by their first digits.
_CALLING_CODE = re.compile(
    r"\+(?:1[ .(-]*[2-9]|7|2[07]|3[0-469]|4[013-9]|5[1-8]|6[0-6]|8[1246]|9[0-58]"
    r"|2[1-689]\d|3[578]\d|42\d|50\d|59\d|6[789]\d|80\d|85\d|87\d|88\d|96\d|97\d|99\d)"
)
_NO_AREA = re.compile(r"[2-4]00|\d11|\d9")
_CALL = re.compile(
    r"(?:phone|\btel|\bfax|mobile|\bcall|\bdial|contact|\breach|hotline|whatsapp|\bmy number|전화|연락|팩스|휴대폰"
    r"|핸드폰|문의)[^\n\d]{0,24}$",
    re.IGNORECASE,
)
_RECORD = re.compile(
    r"(?:order|invoice|tracking|ticket|serial|shipment|parcel|imei|sku|barcode|\bean|gtin|\bupc|isbn|batch|\blot"
    r"|timestamp|주문|송장|일련|바코드|상품|제품|품목|문서)"
    r"[ ]?(?:numbers?|no\.?|ids?|codes?|번호|코드)?[ :#=은는이가-]*(?:is[ ])?$",
    re.IGNORECASE,
)
_RESIDENT = re.compile(r"(?:주민|외국인|resident)[^\n\d]{0,16}$", re.IGNORECASE)
_VERSION = re.compile(
    r"""
    (?: \b(?:v|ver|version|release|rel|rev|revision|build|firmware|driver|update|patch|upgrade|kernel|sdk
          |section|sec|chapter|clause|article|appendix|paragraph|figure|fig|table)(?:s|d)?\.?
        [ ]?(?:is[ ]|from[ ]|to[ ]|of[ ]|no\.?[ ]?|number[ ]|[:=\#][ ]?)?v?
      | (?:버전|릴리스|릴리즈|펌웨어|드라이버|빌드|그림|표|제)[은는이가:]?[ ]?
      | §[ ]? | [=<>~!^]=[ ]? | [A-Za-z][_-]
      | (?:^|[\s(;,"'])[A-Za-z][\w.+-]*/
    )$
    """,
    re.IGNORECASE | re.VERBOSE,
)
_AFTER_VERSION = re.compile(
    r"[ ]?(?:버전|릴리스)|(?:절|장|항|조)[을를은는의에이과와]?(?![가-힣])|\.(?:jar|zip|tar|whl|exe|rpm|deb)"
)
_NETWORK = re.compile(
    r"""
    (?: \bip(?:v4)? | address | addr | server | host | client | log(?:in|ged[ ]in) | gateway | router | \bdns | proxy
      | \bping | \bssh | connect(?:ion)? | request | traffic | node | peer | visitor | subnet
      | 서버 | 주소 | 접속 | 아이피 | 클라이언트 | 호스트 | 로그인 | 요청 | :// | @ )
    (?:s|es|ed)? [은는이가에의로]? [^\w\n]*
    (?:(?:is|was|are|from|at|to|of|on|by|in|with|via|came|comes|the|ip|address|주소)[^\w\n]+){0,3}$
    """,
    re.IGNORECASE | re.VERBOSE,
)
_PRIVATE = [ipaddress.IPv4Network(n) for n in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16")]
_PORT = re.compile(r":\d{2,5}(?!\d)")
_PREFIX_LENGTH = re.compile(r"/\d{1,2}(?!\d)")
_SMALL = 32
"""Three of the four parts of a version are below; of random addresses 0.7 % are like that."""


def mask_secrets(text: str, kinds: Collection[str] = KINDS) -> tuple[str, Counter[str]]:
    """(`text` with placeholders for keys and passwords in addresses, number masked by kind); also right for code."""
    found: Counter[str] = Counter()
    if not any(mark in text for mark in _SECRET_MARKS):
        return text, found

    def replace(match: re.Match[str]) -> str:
        kind = "credentials" if match["credentials"] else "key"
        if kind not in kinds:
            return match.group()
        found[kind] += 1
        return PLACEHOLDERS[kind]

    return _SECRET.sub(replace, text), found


def mask(text: str, kinds: Collection[str] = KINDS) -> tuple[str, Counter[str]]:
    """(`text` with placeholders for personal data of `kinds`, number masked by kind)."""
    found: Counter[str] = Counter()

    def replace(match: re.Match[str]) -> str:
        kind = _kind(match)
        if kind not in kinds:
            return match.group()
        found[kind] += 1
        return (match["cue"] or "") + PLACEHOLDERS[kind]

    def replace_address(match: re.Match[str]) -> str:
        if not is_personal_address(match.group()):
            return match.group()
        found["ip"] += 1
        return PLACEHOLDERS["ip"]

    if "@" in text and "email" in kinds:
        text, found["email"] = _EMAIL.subn(PLACEHOLDERS["email"], text)
    if "ip" in kinds and _MAYBE_IPV6.search(text):
        text = _IPV6.sub(replace_address, text)
    if _MAYBE_NUMBER.search(text):
        text = _NUMBER.sub(replace, text)
    return text, +found


def _kind(match: re.Match[str]) -> str:
    """The kind of a match that its check digit, value and surroundings confirm, or ''."""
    value = match.group()
    digits = "".join(character for character in value if character.isdigit())
    before = match.string[max(0, match.start() - _CONTEXT_CHARACTERS) : match.start()]
    if match["rrn"]:
        # Thirteen digits may be three things: a resident number written whole, a barcode, an old card number.
        is_whole = value == digits
        if is_whole and _is_record(digits, before) and not _RESIDENT.search(before):
            return ""
        if is_resident_number(digits) or (("-" in value) and has_birth_date(digits)):
            return "rrn"
        return "card" if is_whole and not is_barcode(digits) and is_card_number(digits) else ""
    if match["card"]:
        if value == digits and (_RECORD.search(before) or is_barcode(digits)):
            return ""
        is_grouped = [len(part) for part in re.split("[ -]", value)] in ([len(digits)], [4, 4, 4, 4], [4, 6, 5])
        return "card" if is_grouped and is_card_number(digits) else ""
    if match["brn"]:
        return "brn" if is_business_number(digits) else ""
    if match["account"]:
        is_account = 10 <= len(digits) <= 14 if match["cue"] else is_iban(value)
        return "account" if is_account else ""
    if match["ip"]:
        is_address = is_personal_address(value) and not _is_version(value, before, match.string[match.end() :][:12])
        return "ip" if is_address else ""
    return "phone" if _is_phone(match, digits, before) else ""


def _is_record(digits: str, before: str) -> bool:
    """True for thirteen digits that number a thing: said to, or a Korean barcode, which looks like a birth in 1988."""
    return _RECORD.search(before) is not None or (digits.startswith("880") and is_barcode(digits))


def _is_phone(match: re.Match[str], digits: str, before: str) -> bool:
    value = match.group()
    if value.startswith("+"):
        groups = re.findall(r"\d+", value)[1:]
        is_round = len(groups) > 2 and all(group.endswith("0") for group in groups)
        return len(digits) >= 9 and _CALLING_CODE.match(value) is not None and not is_round
    if not match["us"]:
        return True
    if _NO_AREA.match(digits):
        return False
    # Three numbers beside each other are sizes more often than a telephone.
    after = match.string[match.end() : match.end() + 2]
    is_row = re.search(r"\d[ ]$", before) or re.match(r"[ ]\d", after)
    return match["us"] != " " or (_CALL.search(before) is not None and not is_row)


def _is_version(value: str, before: str, after: str) -> bool:
    """True where four numbers are a version, a section or a network, not the address of a machine."""
    address = ipaddress.IPv4Address(value)
    if any(address in network for network in _PRIVATE):
        # The same in every home; behind a name or a password it is somebody's machine.
        return not before.endswith("@")
    if length := _PREFIX_LENGTH.match(after):
        network = ipaddress.ip_interface(value + length.group()).network if int(length.group()[1:]) <= 32 else None
        return network is None or network.network_address == address
    if value.endswith(".0.0") or _VERSION.search(before) or _AFTER_VERSION.match(after):
        return True
    is_small = sum(int(part) < _SMALL for part in value.split(".")) >= 3
    return is_small and not _NETWORK.search(before) and not _PORT.match(after)


def is_card_number(digits: str) -> bool:
    """True for a prefix and length that an issuer uses and a valid Luhn check digit (ISO/IEC 7812-1)."""
    if not _ISSUED.fullmatch(digits) or len(set(digits)) == 1:
        return False
    doubled = [int(digit) * (1 + index % 2) for index, digit in enumerate(reversed(digits))]
    return sum(number - 9 if number > 9 else number for number in doubled) % 10 == 0


def is_barcode(digits: str) -> bool:
    """True for 13 digits with the check digit of an EAN-13 or ISBN-13 (GS1)."""
    return len(digits) == 13 and sum(int(digit) * (1 + 2 * (place % 2)) for place, digit in enumerate(digits)) % 10 == 0


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
