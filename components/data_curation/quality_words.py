"""English words and signs as the web filters count them: the tokenisation of spaCy's blank English model.

Between spaces, signs come off both ends, one after the other, until a known short form or nothing else is left; the
rest is divided at hyphens, slashes and the like between letters, unless it is an address (spaCy's documentation,
"How spaCy's tokenizer works"). Left out: most emoticons, which hold no letter, and scripts other than Latin where their
rules differ.
"""

from __future__ import annotations

import functools

import numpy as np

from bloomery.components.data_curation.quality_text import (
    CURRENCY,
    DIGIT,
    ICON,
    LETTER,
    LOWER,
    NUMBER,
    PEELED,
    QUOTE,
    SPACE,
    UPPER,
    ZERO,
    compiled,
    looked_up,
    lookup,
    span_hash,
)

MAX_FORM_CHARACTERS = 12
"""Longest short form: `shouldn't've`."""
MAX_UNIT_CHARACTERS = 4

_SUBJECTS = "i you he she it we they".split()
_QUESTIONS = "who what when where why how there that this these those".split()
_NEGATED = "ca could do does did had may might must need ought sha should wo would".split()
_NEGATED_ONLY = "ai are is was were have has dare".split()
_AMBIGUOUS = "Ill ill Its its Hell hell Shell shell Shed shed were Were Well well Whore whore".split()
_WHOLE = (
    "a.m. p.m. e.g. E.g. E.G. i.e. I.e. I.E. vs. v.s. Adm. Bros. co. Co. Corp. D.C. Dr. Gen. Gov. Inc. Jr. Ltd. "
    "Messrs. Mr. Mrs. Ms. Ph.D. Prof. Rep. Rev. Sen. St. Mt. Jan. Feb. Mar. Apr. Jun. Jul. Aug. Sep. Sept. Oct. Nov. "
    "Dec. Ak. Ala. Ariz. Ark. Calif. Colo. Conn. Del. Fla. Ga. Ia. Id. Ill. Ind. Kan. Kans. Ky. La. Mass. Md. Mich. "
    "Minn. Miss. Mo. Mont. N.C. N.D. N.H. N.J. N.M. N.Y. Neb. Nebr. Nev. Okla. Ore. Pa. S.C. Tenn. Va. Wash. Wis. "
    "and/or w/o ma'am Ma'am o'clock O'clock 'cause 'Cause 'cos 'Cos 'coz 'Coz 'cuz 'Cuz 'bout 'em 'll 'nuff 'd 's "
    "'S 're ol' Ol' doin' Doin' goin' Goin' nothin' Nothin' nuthin' Nuthin' somethin' Somethin' lovin' Lovin' "
    "havin' Havin' '' C++ \\n \\t 8) 8-) <3 :) :( ;) :-) :-( ;-) :/ :D :P (: =) ä. ö. ü."
).split() + [f"{chr(code)}." for code in range(ord("a"), ord("z") + 1)]
_DIVIDED = "can|not gon|na got|ta let|'s c'm|on not|'ve not|ve i|'m i|m i|'m|a i|m|a y'|all y|all how|'d|'y".split()
_UNITS = (
    "km km² km³ m m² m³ dm dm² dm³ cm cm² cm³ mm mm² mm³ ha µm nm yd in ft kg g mg µg t lb oz m/s km/h kmh mph hPa Pa "
    "mbar mb MB kb KB gb GB tb TB T G M K %"
).split()


@functools.cache
def short_forms() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Two look-ups: short forms with the lengths of their parts, four bits each, and units that follow a number."""
    packed = {"".join(parts): _packed(parts) for parts in _forms()}
    packed |= {form.replace("'", "’"): lengths for form, lengths in packed.items()}
    return *lookup(packed), *lookup(dict.fromkeys(_UNITS, 1))


def _forms() -> list[tuple[str, ...]]:
    divided = [tuple(text.split("|")) for text in _DIVIDED]
    for words, endings in (
        (_SUBJECTS, ("'ll", "'d", "'ll 've", "'d 've")),
        (("you", "we", "they", "i"), ("'ve",)),
        (("you", "we", "they"), ("'re",)),
        (("he", "she", "it"), ("'s",)),
        (_QUESTIONS, ("'ll", "'d", "'ll 've", "'d 've")),
        ([word for word in _QUESTIONS if word not in ("these", "those")], ("'s",)),
        ([word for word in _QUESTIONS if word not in ("that", "this")], ("'re", "'ve")),
        (_NEGATED, ("n't", "n't 've")),
        (_NEGATED_ONLY, ("n't",)),
        (("could", "might", "must", "should", "would"), ("'ve",)),
    ):
        for word in words:
            for ending in endings:
                parts = ending.split()
                divided += [(word, *parts), (word, *(part.replace("'", "") for part in parts))]
    divided += [(parts[0].title(), *parts[1:]) for parts in divided]
    for hour in map(str, range(1, 13)):
        divided += [(hour, half) for half in ("am", "pm", "a.m.", "p.m.")]
    return [parts for parts in divided if "".join(parts) not in _AMBIGUOUS] + [(word,) for word in _WHOLE]


def _packed(parts: tuple[str, ...]) -> int:
    return sum(len(part) << (4 * place) for place, part in enumerate(parts))


@compiled
def english_words(codes, count, prefixes, powers, kinds, forms, starts, ends, stack):
    """Write where each word and sign of a text starts and ends; returns their number."""
    words = place = ZERO
    while place < count:
        if kinds[codes[place]] & SPACE:
            place += 1
            continue
        start, common = place, kinds[codes[place]]
        while place < count and not kinds[codes[place]] & SPACE:
            common &= kinds[codes[place]]
            place += 1
        if common & LETTER and not _form(start, place, prefixes, powers, forms):
            starts[words], ends[words] = start, place
            words += 1
        else:
            words = _span(codes, start, place, prefixes, powers, kinds, forms, words, starts, ends, stack)
    return words


@compiled
def _span(codes, left, right, prefixes, powers, kinds, forms, words, starts, ends, stack):
    """Divide what stands between two spaces."""
    num_peeled = ZERO
    while left < right and not _form(left, right, prefixes, powers, forms):
        head = _head(codes, left, right, kinds)
        if head and left + head < right and _form(left + head, right, prefixes, powers, forms):
            starts[words], ends[words] = left, left + head
            words, left = words + 1, left + head
            break
        tail = _tail(codes, left + head, right, prefixes, powers, kinds, forms)
        if tail and right - tail > left and _form(left, right - tail, prefixes, powers, forms):
            stack[num_peeled] = right
            num_peeled, right = num_peeled + 1, right - tail
            break
        if not head and not tail:
            break
        if head:
            starts[words], ends[words] = left, left + head
            words, left = words + 1, left + head
        if tail:
            stack[num_peeled] = right
            num_peeled, right = num_peeled + 1, right - tail
    words = _core(codes, left, right, prefixes, powers, kinds, forms, words, starts, ends)
    while num_peeled:
        num_peeled -= 1
        starts[words], ends[words] = right, stack[num_peeled]
        words, right = words + 1, stack[num_peeled]
    return words


@compiled
def _form(left, right, prefixes, powers, forms):
    """Packed lengths of the parts of a known short form, 0 if it is none."""
    if right - left > MAX_FORM_CHARACTERS or right - left < 2:
        return 0
    return looked_up(forms[0], forms[1], span_hash(prefixes, powers, left, right))


@compiled
def _dots(codes, left, right):
    """Length of the run of full stops at `left`, if it is two or more."""
    end = left
    while end < right and codes[end] == 0x2E:
        end += 1
    return end - left if end - left > 1 else 0


@compiled
def _head(codes, left, right, kinds):
    """Characters that come off the beginning."""
    code = codes[left]
    if kinds[code] & (PEELED | QUOTE | CURRENCY | ICON):
        return 1
    if code == 0x25 or code == 0x3D or code == 0xA7 or code == 0x2013 or code == 0x2014 or code == 0x2026:
        return 1
    if code == 0x2B:
        return 0 if left + 1 < right and kinds[codes[left + 1]] & DIGIT else 1
    if code == 0x2E:
        return _dots(codes, left, right)
    if left + 1 < right and codes[left + 1] == 0x24:
        return 2 if code == 0x41 or code == 0x43 else 0
    if left + 2 < right and code == 0x55 and codes[left + 1] == 0x53 and codes[left + 2] == 0x24:
        return 3
    return 0


@compiled
def _tail(codes, left, right, prefixes, powers, kinds, forms):
    """Characters that come off the end."""
    if left >= right:
        return 0
    last = codes[right - 1]
    kind = kinds[last]
    before = codes[right - 2] if right - left > 1 else np.uint32(0)
    if (last == 0x73 or last == 0x53) and (before == 0x27 or before == 0x2019):
        return 2
    if last == 0x2E:
        end = right
        while end > left and codes[end - 1] == 0x2E:
            end -= 1
        if right - end > 1:
            return right - end
        return 1 if before and _may_close(before, codes, left, right, kinds) else 0
    if kind & (PEELED | QUOTE | ICON) or last == 0x2013 or last == 0x2014 or last == 0x2026:
        return 1
    if last == 0x2B or kind & CURRENCY:
        return 1 if kinds[before] & DIGIT else 0
    start = right
    while start > left and right - start <= MAX_UNIT_CHARACTERS and not kinds[codes[start - 1]] & DIGIT:
        start -= 1
    if start == right or start == left or not kinds[codes[start - 1]] & DIGIT:
        return 0
    is_unit = looked_up(forms[2], forms[3], span_hash(prefixes, powers, start, right))
    return right - start if is_unit else 0


@compiled
def _may_close(before, codes, left, right, kinds):
    """Whether a full stop after `before` is a sign of its own and not part of an abbreviation."""
    kind = kinds[before]
    if kind & (DIGIT | LOWER | PEELED | QUOTE) or before == 0x2026:
        return True
    if before == 0x25 or before == 0xB2 or before == 0x2D or before == 0x2B or before == 0x7C:
        return True
    return right - left > 2 and kind & UPPER != 0 and kinds[codes[right - 3]] & UPPER != 0


@compiled
def _core(codes, left, right, prefixes, powers, kinds, forms, words, starts, ends):
    """Write what is left between the signs: a short form, an address, or words with signs between them."""
    if left >= right:
        return words
    parts = _form(left, right, prefixes, powers, forms)
    if parts:
        while parts:
            starts[words], ends[words] = left, left + (parts & 15)
            words, left, parts = words + 1, left + (parts & 15), parts >> 4
        return words
    first, start, place = words, left, left + 1
    while place < right:
        length = _infix(codes, left, place, right, kinds)
        if length:
            if place > start:
                starts[words], ends[words] = start, place
                words += 1
            starts[words], ends[words] = place, place + length
            words, start = words + 1, place + length
        place += max(1, length)
    if words > first and _is_address(codes, left, right, kinds):
        words, start = first, left
    if start < right:
        starts[words], ends[words] = start, right
        words += 1
    return words


@compiled
def _infix(codes, left, place, right, kinds):
    """Length of the sign between two words at `place`, 0 if none stands there."""
    code = codes[place]
    kind = kinds[code]
    if kind & (LETTER | DIGIT):
        return 0
    if kind & ICON or code == 0x2026:
        return 1
    before = kinds[codes[place - 1]]
    after = kinds[codes[place + 1]] if place + 1 < right else np.uint32(0)
    if code == 0x2E:
        dots = _dots(codes, place, right)
        return dots if dots else (1 if before & (LOWER | QUOTE) and after & (UPPER | QUOTE) else 0)
    if before & DIGIT and (code == 0x2B or code == 0x2D or code == 0x2A or code == 0x5E):
        if after & DIGIT or (place + 1 < right and codes[place + 1] == 0x2D):
            return 1
    if code == 0x2C:
        return 1 if before & LETTER and after & LETTER else 0
    if not before & (LETTER | DIGIT):
        return 0
    if code == 0x3A or code == 0x3C or code == 0x3D or code == 0x3E or code == 0x2F or code == 0x7E:
        return 1 if after & LETTER and (code != 0x7E or before & (LETTER | DIGIT)) else 0
    if code != 0x2D and code != 0x2013 and code != 0x2014:
        return 0
    end, most = place, 3 if code == 0x2D else (2 if code == 0x2014 else 1)
    while end < right and codes[end] == code and end - place < most:
        end += 1
    return end - place if end < right and kinds[codes[end]] & LETTER else 0


@compiled
def _is_address(codes, left, right, kinds):
    """Whether it reads `scheme://user@host.name:port/path`, of which only `host.name` is needed."""
    start = left
    while start < right and (
        kinds[codes[start]] & (LETTER | NUMBER) or _is_joint(codes[start]) or _in_scheme(codes[start])
    ):
        start += 1
    has_scheme = start - left > 1 and start + 2 < right
    has_scheme = has_scheme and codes[start] == 0x3A and codes[start + 1] == 0x2F and codes[start + 2] == 0x2F
    start = start + 3 if has_scheme else left
    if _is_host(codes, start, right, kinds):
        return True
    for place in range(right - 1, start, -1):
        if codes[place] == 0x40 and _is_host(codes, place + 1, right, kinds):
            return True
    return False


@compiled
def _in_scheme(code):
    return code == 0x2B or code == 0x2E


@compiled
def _is_host(codes, left, right, kinds):
    """Whether a host name with a lower-case domain of two letters or more stands here, and nothing but a port or
    path after it."""
    place, label, num_labels = left, left, 0
    while place < right:
        code = codes[place]
        if code == 0x2E:
            if place == label or _is_joint(codes[label]) or _is_joint(codes[place - 1]):
                return False
            num_labels, label = num_labels + 1, place + 1
        elif not (code >= 0xA1 or kinds[code] & (LETTER | DIGIT) or _is_joint(code)):
            break
        place += 1
    if not num_labels or place - label < 2:
        return False
    for letter in range(label, place):
        if not kinds[codes[letter]] & LOWER:
            return False
    if place < right and codes[place] == 0x3A:
        place += 1
        digits = place
        while place < right and kinds[codes[place]] & DIGIT:
            place += 1
        if not 2 <= place - digits <= 5:
            return False
    return place == right or codes[place] == 0x2F or codes[place] == 0x3F or codes[place] == 0x23


@compiled
def _is_joint(code):
    return code == 0x2D or code == 0x5F
