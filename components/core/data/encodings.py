"""Bytes that are not UTF-8: what a file declares, what a source says, and what undeclared bytes look like.

A byte order mark rules, then the source's `encoding`, then what a page declares, as in browsers (WHATWG, Encoding and
HTML standards). Nothing else is read by a guess: the guess goes into the message.
"""

from __future__ import annotations

import codecs
import re
from typing import IO, Any

MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, ""),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
"""Byte order marks and what follows them, the longer first; '' is UTF-8, whose mark the readers take off."""

LOOKS = {
    "cp949": "Korean, also called EUC-KR",
    "cp932": "Japanese, also called Shift-JIS",
    "euc_jp": "Japanese",
    "gb18030": "Chinese, also called GBK",
    "big5hkscs": "Chinese, also called Big5",
    "cp1252": "Western European, also called Latin-1",
    "cp1251": "Cyrillic",
    "koi8_r": "Cyrillic",
    "utf_16_le": "written by Windows",
    "utf_16_be": "big-endian",
}
"""What undeclared bytes are compared with."""

_SUPERSETS = {
    "euc_kr": "cp949",
    "shift_jis": "cp932",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "big5": "big5hkscs",
    "iso8859-1": "cp1252",
    "ascii": "cp1252",
}
"""What is meant where the older name is written (WHATWG Encoding Standard)."""
_WEB_NAMES = {"windows-949": "cp949", "x-windows-949": "cp949", "x-euc-kr": "cp949", "ksc5601": "cp949"} | {
    "x-sjis": "cp932",
    "x-euc-jp": "euc_jp",
    "x-gbk": "gb18030",
}
_META = re.compile(rb"<meta\b[^>]{0,500}?\bcharset\s*=\s*[\"']?\s*([\w.:-]+)", re.IGNORECASE)
_PROLOG = re.compile(rb"\s*<\?xml\b[^>]{0,200}?\bencoding\s*=\s*[\"']([\w.:-]+)", re.IGNORECASE)
_HEAD_BYTES = 4096
_SAMPLE_BYTES = 2**14

# One character for what cannot be decoded, which becomes a byte that is no UTF-8: its line is a reject like any other.
codecs.register_error("bloomery.not_text", lambda error: ("\udcff", error.end))  # type: ignore[attr-defined]


def codec(name: str) -> str:
    """Python's name of an encoding, '' for UTF-8. Raises: ValueError for a name that nobody knows."""
    try:
        found = codecs.lookup(_WEB_NAMES.get(name.strip().lower(), name.strip()))
        if not found._is_text_encoding:  # type: ignore[attr-defined]
            raise LookupError
    except LookupError:
        expected = "expected one such as utf-8, cp949, cp1252, cp932 or gb18030"
        raise ValueError(f"{name!r} is no encoding; {expected}") from None
    return "" if found.name in ("utf-8", "utf-8-sig") else _SUPERSETS.get(found.name, found.name)


def declared(page: bytes) -> str:
    """The encoding that a page names in its prolog or a meta element, '' where it names none that is known."""
    found = _PROLOG.match(page[:_HEAD_BYTES]) or _META.search(page[:_HEAD_BYTES])
    try:
        name = codec(found[1].decode("ascii")) if found else ""
    except ValueError:
        return ""
    # A page whose declaration can be read as ASCII is not in UTF-16, whatever it says.
    return "" if name.startswith(("utf-16", "utf-32", "utf_16", "utf_32")) else name


def guess(data: bytes) -> str:
    """What bytes that are not UTF-8 look like, '' where some of their lines are or nothing fits."""
    for order, name in (((0, 1), "utf_16_be"), ((1, 0), "utf_16_le")):
        zeros, others = (data[start::2].count(0) for start in order)
        if zeros > len(data) // 8 and others * 8 < zeros:
            return name
    odd = [line for line in data.split(b"\n")[:-1] or [data] if not line.isascii()]
    broken = [line for line in odd if not _is_utf8(line)]
    if not broken or len(odd) > 2 * len(broken):
        return ""
    from charset_normalizer import from_bytes

    known = [name for name in LOOKS if not name.startswith("utf_16")]
    best = from_bytes(b"\n".join(broken)[:_SAMPLE_BYTES], cp_isolation=known).best()
    return best.encoding if best else ""


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


class Utf8:
    """A stream of bytes as UTF-8; what is no text of its encoding is no UTF-8 either."""

    def __init__(self, stream: IO[bytes], encoding: str) -> None:
        """`encoding` as `codec` names it; a byte order mark overrides it."""
        self._stream = stream
        head = b""
        while len(head) < 4 and (more := stream.read1(4 - len(head))):  # type: ignore[attr-defined]
            head += more
        marked = next(((mark, name) for mark, name in MARKS if head.startswith(mark)), None)
        self.encoding = marked[1] if marked else encoding
        """'' for UTF-8."""
        self._decoder: Any = None
        if self.encoding:
            self._decoder = codecs.getincrementaldecoder(self.encoding)("bloomery.not_text")
            head = head[len(marked[0]) :] if marked else head
        self._head = head
        self._sample = head
        self._hint: str | None = None

    def read1(self, size: int) -> bytes:
        """Some bytes, about `size` at most; b'' at the end."""
        while True:
            data = self._head + self._stream.read1(size)  # type: ignore[attr-defined]
            self._head = b""
            if not data or not data.isascii() or len(self._sample) < 5:
                self._sample = data or self._sample
            if self._decoder is None:
                return data
            found = self._recoded(data, is_last=not data)
            if found or not data:
                return found

    def read(self, size: int) -> bytes:
        """`size` bytes, or all that are left."""
        parts, num_bytes = [], 0
        while num_bytes < size and (part := self.read1(size - num_bytes)):
            parts.append(part)
            num_bytes += len(part)
        return b"".join(parts)

    def hint(self) -> str:
        """What the bytes look like and what to do, '' where nobody can say; told of the first that are no text."""
        if self._hint is None:
            found, name = guess(self._sample), self.encoding or "UTF-8"
            self._hint = f"not all of it is {name}" if self.encoding else ""
            if found:
                looks = f"they look like {found} ({LOOKS[found]})"
                self._hint = f"the bytes are not {name}, {looks}: set `encoding: {found}`"
        return self._hint

    def _recoded(self, data: bytes, *, is_last: bool) -> bytes:
        text: str = self._decoder.decode(data, is_last)
        return text.encode("utf-8", "surrogateescape")
