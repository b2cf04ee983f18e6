"""The raw corpus: clean documents laid out over many formats, with planted dirt and a ledger of where it lies."""

from __future__ import annotations

import dataclasses
import gzip
import html
import json
import random
import unicodedata
from pathlib import Path
from typing import Any

from bloomery.pipelines.quickstart import dirt
from bloomery.pipelines.quickstart.documents import Document
from bloomery.pipelines.quickstart.questions import Question

EXACT_COPY_FRACTION = 0.08
EDIT_RATES = (0.02, 0.05, 0.10, 0.20)
NUM_NEAR_COPIES_PER_RATE = 20
NUM_SPACES_DROPPED = 20
SPACES_DROPPED_FRACTION = 0.1
NUM_NFD = 20
NUM_BOILERPLATE = 120
NUM_PII = 96
NUM_BROKEN_JSON = 20
NUM_WRONG_TEXT_FIELD = 20
NUM_CP949_LINES = 10
NUM_LATIN1_LINES = 5
NUM_FOREIGN_PER_LANGUAGE = 10
NUM_GIBBERISH = 60
NUM_LEAKED = 20

WHOLE_FILES = {"md": 150, "html": 60, "txt": 40}
NUM_ARCHIVED = 250
# Rows that carry dirt may lie in any of these; the SQL cookbook has a file of its own.
ROW_FILES = ("wiki.jsonl", "archive.jsonl.gz")


@dataclasses.dataclass(eq=False)
class Piece:
    """One file or one line of the corpus. `raw` is what a line holds where it is not a JSON row of `text`."""

    text: str
    language: str
    source: str
    file: str
    line: int | None = None
    raw: bytes | None = None
    encoding: str = "utf-8"
    planted: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    original: Piece | None = None

    def plant(self, kind: str, text: str | None = None, **details: Any) -> None:
        """Note that this piece carries dirt: `text` is the spoiled part, the whole text if not given."""
        self.planted.append({"kind": kind, "text": self.text if text is None else text, "details": details})


def write_corpus(
    folder: Path, documents: list[Document], leaked: list[tuple[str, Question]], seed: int
) -> list[dict]:
    """Write `documents` and the dirt under `folder` and return the ledger.

    A ledger entry has kind, file (relative to `folder`), line (1-based in the decompressed file; None for a whole
    file), text, details, and for copies original_file and original_line. `leaked` holds (split, question) pairs.
    """
    rng = random.Random(f"corpus/{seed}")
    pieces = _lay_out(documents, rng)
    rows = [piece for piece in pieces if piece.file in ROW_FILES]
    rng.shuffle(rows)
    _plant_inside(rows, rng)
    clean = [row for row in rows if not row.planted]
    copies = _copies(clean, round(EXACT_COPY_FRACTION * len(documents)), rng)
    pieces += copies + _unusable(clean, rng) + _noise(rng) + _leaks(leaked, rng) + _foreign_encodings(rng)
    copied = [copy.original for copy in copies]
    for row in [row for row in clean if row.language == "ko" and row not in copied][:NUM_CP949_LINES]:
        row.encoding = "cp949"
        row.plant("wrong_encoding", encoding="cp949")
    _write(folder, pieces, rng)
    return _ledger(pieces)


def _lay_out(documents: list[Document], rng: random.Random) -> list[Piece]:
    pieces = [
        Piece(d.text, d.language, d.source, "cookbook.jsonl") for d in documents if d.source == "cookbook"
    ]
    others = [document for document in documents if document.source != "cookbook"]
    rng.shuffle(others)
    for suffix, count in WHOLE_FILES.items():
        for number in range(count):
            d = others.pop()
            pieces.append(
                Piece(d.text, d.language, d.source, f"{d.source}/{d.language}_{number:03d}.{suffix}")
            )
    for number, d in enumerate(others):
        pieces.append(Piece(d.text, d.language, d.source, ROW_FILES[number < NUM_ARCHIVED]))
    for page in pieces:
        if page.file.endswith(".html"):
            for line in dirt.BOILERPLATE[page.language][:3]:
                page.plant("boilerplate", line)
    return pieces


def _plant_inside(rows: list[Piece], rng: random.Random) -> None:
    """Add boilerplate lines and sentences with personal data to documents that stay otherwise good."""
    for row in rows[:NUM_BOILERPLATE]:
        lines = rng.sample(dirt.BOILERPLATE[row.language], 2)
        row.text = f"{lines[0]}\n{row.text}\n{lines[1]}"
        for line in lines:
            row.plant("boilerplate", line)
    for number, row in enumerate(rows[NUM_BOILERPLATE : NUM_BOILERPLATE + NUM_PII]):
        pii = dirt.make_pii(dirt.PII_KINDS[number % len(dirt.PII_KINDS)], rng)
        glued = row.language == "ko" and rng.random() < 0.5
        row.text += " " + dirt.pii_sentence(pii, row.language, glued)
        row.plant("pii", pii.value, type=pii.kind, glued=glued)


def _copies(clean: list[Piece], num_exact: int, rng: random.Random) -> list[Piece]:
    def copy(original: Piece, text: str) -> Piece:
        return Piece(text, original.language, original.source, rng.choice(ROW_FILES), original=original)

    pool = list(clean)
    rng.shuffle(pool)
    korean = [row for row in pool if row.language == "ko"][: NUM_SPACES_DROPPED + NUM_NFD]
    pool = [row for row in pool if row not in korean]
    copies = []
    for original in [pool.pop() for _ in range(num_exact)]:
        copies.append(copy(original, original.text))
        copies[-1].plant("exact_copy")
    vocabulary = {
        lang: [w for row in clean if row.language == lang for w in row.text.split() if w.isalpha()]
        for lang in ("en", "ko")
    }
    for rate in EDIT_RATES:
        for original in [pool.pop() for _ in range(NUM_NEAR_COPIES_PER_RATE)]:
            text, count = dirt.edit_words(original.text, rate, vocabulary[original.language], rng)
            copies.append(copy(original, text))
            copies[-1].plant("near_copy", edit_rate=rate, words_edited=count)
    for original in korean[:NUM_SPACES_DROPPED]:
        text, count = dirt.drop_spaces(original.text, SPACES_DROPPED_FRACTION, rng)
        copies.append(copy(original, text))
        copies[-1].plant("spaces_dropped", spaces_dropped=count)
    for original in korean[NUM_SPACES_DROPPED:]:
        copies.append(copy(original, unicodedata.normalize("NFD", original.text)))
        copies[-1].plant("unicode_nfd")
    return copies


def _unusable(clean: list[Piece], rng: random.Random) -> list[Piece]:
    pieces = []
    for _ in range(NUM_BROKEN_JSON):
        line, fault = dirt.broken_json(rng.choice(clean).text, rng)
        pieces.append(Piece(line, "", "notes", rng.choice(ROW_FILES), raw=line.encode()))
        pieces[-1].plant("broken_json", fault=fault)
    for _ in range(NUM_WRONG_TEXT_FIELD):
        row, fault = dirt.wrong_text_field(rng.choice(clean).text, rng)
        line = json.dumps(row, ensure_ascii=False)
        pieces.append(Piece(line, "", "notes", rng.choice(ROW_FILES), raw=line.encode()))
        pieces[-1].plant("wrong_text_field", fault=fault)
    return pieces


def _noise(rng: random.Random) -> list[Piece]:
    pieces = []
    for language in dirt.FOREIGN:
        for text in sorted({dirt.foreign_text(language, rng) for _ in range(NUM_FOREIGN_PER_LANGUAGE)}):
            pieces.append(Piece(text, language, "notes", rng.choice(ROW_FILES)))
            pieces[-1].plant("foreign_language", language=language)
    for _ in range(NUM_GIBBERISH):
        text, noise = dirt.gibberish(rng)
        pieces.append(Piece(text, "", "notes", rng.choice(ROW_FILES)))
        pieces[-1].plant("gibberish", noise=noise)
    return pieces


def _leaks(leaked: list[tuple[str, Question]], rng: random.Random) -> list[Piece]:
    pieces = []
    for number, (split, question) in enumerate(leaked):
        change = dirt.LEAK_CHANGES[number % len(dirt.LEAK_CHANGES)]
        pieces.append(Piece(dirt.leak(question, change), question.language, "notes", rng.choice(ROW_FILES)))
        pieces[-1].plant("leaked_question", question_id=question.row(split)["id"], split=split, change=change)
    return pieces


def _foreign_encodings(rng: random.Random) -> list[Piece]:
    pieces = []
    for number in range(NUM_LATIN1_LINES + 1):
        text = f"Café voucher {number}: a crème brûlée for £{rng.randrange(3, 9)}, naïve prices, résumé at the counter."
        file = "notes/menu_latin1.txt" if number == 0 else rng.choice(ROW_FILES)
        pieces.append(Piece(text, "en", "notes", file, encoding="latin-1"))
        pieces[-1].plant("wrong_encoding", encoding="latin-1")
    text = "공지. 이 파일은 오래된 편집기로 저장되었다. 월요일에는 창고를 정리하고 화요일에는 매대를 바꾼다."
    pieces.append(Piece(text, "ko", "notes", "notes/notice_cp949.txt", encoding="cp949"))
    pieces[-1].plant("wrong_encoding", encoding="cp949")
    return pieces


def _write(folder: Path, pieces: list[Piece], rng: random.Random) -> None:
    for file in sorted({piece.file for piece in pieces}):
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        here = [piece for piece in pieces if piece.file == file]
        if ".jsonl" in file:
            rng.shuffle(here)
            for number, piece in enumerate(here, 1):
                piece.line = number
            data = b"".join(_row_bytes(piece) + b"\n" for piece in here)
            # No file name and no time in the gzip header: same rows, same bytes.
            path.write_bytes(gzip.compress(data, mtime=0) if file.endswith(".gz") else data)
        else:
            text = _page(here[0]) if file.endswith(".html") else here[0].text + "\n"
            path.write_bytes(text.encode(here[0].encoding))


def _row_bytes(piece: Piece) -> bytes:
    if piece.raw is not None:
        return piece.raw
    row = {"text": piece.text, "source": piece.source, "license": "CC0-1.0"}
    return json.dumps(row, ensure_ascii=False).encode(piece.encoding)


def _page(piece: Piece) -> str:
    heading, body = piece.text.removeprefix("# ").split("\n\n", 1)
    menu, cookies, footer = (html.escape(line, quote=False) for line in dirt.BOILERPLATE[piece.language][:3])
    paragraphs = "\n".join(f"<p>{html.escape(line, quote=False)}</p>" for line in body.split("\n") if line)
    return (
        f'<!DOCTYPE html>\n<html lang="{piece.language}">\n'
        f'<head><meta charset="utf-8"><title>{heading}</title></head>\n'
        f'<body>\n<nav>{menu}</nav>\n<div class="cookies">{cookies}</div>\n<main>\n<h1>{heading}</h1>\n{paragraphs}\n'
        f"</main>\n<footer>{footer}</footer>\n</body>\n</html>\n"
    )


def _ledger(pieces: list[Piece]) -> list[dict]:
    entries = []
    for piece in pieces:
        for planted in piece.planted:
            entry = {
                "kind": planted["kind"],
                "file": piece.file,
                "line": piece.line,
                "text": planted["text"],
                "details": planted["details"],
            }
            if piece.original:
                entry |= {"original_file": piece.original.file, "original_line": piece.original.line}
            entries.append(entry)
    return sorted(
        entries, key=lambda entry: (entry["kind"], entry["file"], entry["line"] or 0, entry["text"])
    )
