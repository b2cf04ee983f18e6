"""The same question, harder to read: what people's fingers do to a text, in English and Korean.

A typo of Hangul is one of a jamo, as on the two-set keyboard a syllable is two to five keys: the letter beside the
right one, a lost shift, a lost final consonant. Words with a digit and words in capitals are left alone: a wrong letter
in a code asks for something else.
"""

from __future__ import annotations

import random

from bloomery.components.core.scoring.tasks import Perturbation

TYPO_SHARE = 0.04
"""Letters with a typo; a text gets at least one. A choice of our own: about one in a question of a line."""
LOST_SPACES = 0.3
"""Share of the spaces that are lost; a choice of our own, as careless Korean writers leave out about as many."""
ADDED_SPACES = 0.05
"""Share of the places within words that get a space."""

_KEYS = (
    "qwertyuiop",
    "asdfghjkl",
    "zxcvbnm",
    "ㅂㅈㄷㄱㅅ",
    "ㅛㅕㅑㅐㅔ",
    "ㅁㄴㅇㄹㅎ",
    "ㅗㅓㅏㅣ",
    "ㅋㅌㅊㅍ",
    "ㅠㅜㅡ",
)
_BESIDE = {key: row[max(0, at - 1) : at] + row[at + 1 : at + 2] for row in _KEYS for at, key in enumerate(row)}
# Jamo of two keys or of a shift: what is left when the second key or the shift is lost.
_BESIDE |= dict(zip("ㄲㄸㅃㅆㅉㅘㅙㅚㅝㅞㅟㅢㅒㅖ", "ㄱㄷㅂㅅㅈㅗㅗㅗㅜㅜㅜㅡㅐㅔ", strict=True))
_INITIALS = "ㄱㄲㄴㄷㄸㄹㅁㅂㅃㅅㅆㅇㅈㅉㅊㅋㅌㅍㅎ"
_MEDIALS = "ㅏㅐㅑㅒㅓㅔㅕㅖㅗㅘㅙㅚㅛㅜㅝㅞㅟㅠㅡㅢㅣ"
_FINALS = 28


def perturb(text: str, kind: Perturbation, seed: str) -> str:
    """`text` with typos or with wrong spaces; the same for the same seed; `text` itself if nothing can change."""
    chance = random.Random(f"{kind}:{seed}")
    if kind == "typos":
        return _typos(text, chance)
    return _spacing(text, chance)


def _typos(text: str, chance: random.Random) -> str:
    places = [at for start, end in _words(text) for at in range(start, end) if text[at].isalpha()]
    if not places:
        return text
    chosen = chance.sample(places, max(1, round(TYPO_SHARE * len(places))))
    letters = list(text)
    for at in chosen:
        letters[at] = _syllable(letters[at], chance) if "가" <= letters[at] <= "힣" else _letter(letters[at], chance)
    return "".join(letters)


def _letter(letter: str, chance: random.Random) -> str:
    """A letter lost, doubled, or the one beside it; of scripts without keys here, lost or doubled."""
    beside = _BESIDE.get(letter.lower(), "")
    found = chance.choice(["", letter * 2, *([chance.choice(beside)] * 2 if beside else [])])
    return found.upper() if letter.isupper() else found


def _syllable(letter: str, chance: random.Random) -> str:
    """A Hangul syllable with one wrong jamo, or without its final consonant."""
    index = ord(letter) - ord("가")
    initial, medial, final = index // (21 * _FINALS), index // _FINALS % 21, index % _FINALS
    choices = [(_INITIALS.index(key), medial, final) for key in _BESIDE[_INITIALS[initial]]]
    choices += [(initial, _MEDIALS.index(key), final) for key in _BESIDE[_MEDIALS[medial]]]
    choices += [(initial, medial, 0)] * 2 if final else []
    initial, medial, final = chance.choice(choices)
    return chr(ord("가") + (initial * 21 + medial) * _FINALS + final)


def _spacing(text: str, chance: random.Random) -> str:
    between = range(1, len(text) - 1)
    spaces = [at for at in between if text[at] == " " and text[at - 1].isalpha() and text[at + 1].isalpha()]
    inside = [at for start, end in _words(text) for at in range(start + 1, end) if text[at - 1 : at + 1].isalpha()]
    lost = {at for at in spaces if chance.random() < LOST_SPACES}
    added = {at for at in inside if chance.random() < ADDED_SPACES}
    if not lost and not added:
        lost, added = (set(spaces[:1]), set()) if spaces else (set(), set(inside[:1]))
    return "".join((" " if at in added else "") + ("" if at in lost else letter) for at, letter in enumerate(text))


def _words(text: str) -> list[tuple[int, int]]:
    """(start, end) of the words that may be changed."""
    found, start = [], 0
    for word in text.split(" "):
        if not any(letter.isdigit() for letter in word) and not (len(word) > 1 and word.isupper()):
            found.append((start, start + len(word)))
        start += len(word) + 1
    return found
