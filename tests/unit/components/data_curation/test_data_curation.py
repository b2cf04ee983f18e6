"""Rows become documents or rejects: each rule by hand, then the step on real files."""

from __future__ import annotations

import gzip
import json
import random
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from bloomery.components.core.artifact import read_manifest, read_table, write_rows
from bloomery.components.core.config import parse
from bloomery.components.core.data import pii
from bloomery.components.core.data.files import list_files
from bloomery.components.core.data.raw_rows import RawRow
from bloomery.components.core.data.tables import SourceConfig
from bloomery.components.core.errors import ConfigError, DataError
from bloomery.components.core.records import Source
from bloomery.components.data_curation import clean, language, step
from bloomery.components.data_curation.config import DataCurationConfig
from bloomery.components.data_curation.coverage import WantedSlice
from bloomery.components.data_curation.extract import document_text, html_to_markdown
from bloomery.components.data_curation.step import run

ENGLISH = "The customers table holds one row for each customer, and the column joined is the day of the first order."
KOREAN = "고객 표에는 손님마다 한 줄이 있고 가입 열은 처음 주문한 날이다. 주문 표에는 주문마다 한 줄이 있다."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("메일은minsu.kim@example.com입니다", "메일은[EMAIL]입니다"),
        ("카드번호는4111111111111111입니다.", "카드번호는[CARD]입니다."),
        ("4111-1111-1111-1111 and 4111 1111 1111 1112", "[CARD] and 4111 1111 1111 1112"),
        ("3782 822463 10005", "[CARD]"),
        ("주민번호는900101-1234568입니다", "주민번호는[RRN]입니다"),
        ("9001011234568", "[RRN]"),
        ("9001011234567", "9001011234567"),  # a wrong check digit and no hyphen: any number of 13 digits
        ("901301-1234567", "901301-1234567"),  # no thirteenth month
        ("010-1234-5678로", "[PHONE]로"),
        ("연락처는+82 10 1234 5678입니다", "연락처는[PHONE]입니다"),
        ("(206) 555-0123, 206-555-0123, +1 206 555 0123", "[PHONE], [PHONE], [PHONE]"),
        ("192.0.2.55에서", "[IP]에서"),
        ("2001:db8:0:0:1::7", "[IP]"),
        ("서버 2001:db8::1에서", "서버 [IP]에서"),
        ("[2a00:1450::200e]:443", "[[IP]]:443"),
        ("std::vector<int>, fe::ab, 3:16::17", "std::vector<int>, fe::ab, 3:16::17"),
        ("(02)123-4567, 031)123-4567로", "[PHONE], [PHONE]로"),
        ("010‑1234‑5678, 010–1234–5678", "[PHONE], [PHONE]"),
        ("a login from 5.6.7.8, 5.6.7.8:8080, 접속 IP는 1.2.3.4", "a login from [IP], [IP]:8080, 접속 IP는 [IP]"),
        ("root@10.0.0.5 via 203.0.113.7/24", "root@[IP] via [IP]/24"),
        ("Call me at 415 555 0132 or +49 30 901820", "Call me at [PHONE] or [PHONE]"),
        ("2223003122003222, 3530111333300000, 30569309025904, 378282246310005", "[CARD], [CARD], [CARD], [CARD]"),
    ],
)
def test_personal_data_is_masked(text, expected):
    assert pii.mask(text)[0] == expected


@pytest.mark.parametrize(
    "text",
    [
        "version 1.2.3.4, 127.0.0.1, 255.255.255.0, 1.2.3.400",
        "2024-01-15 12:30:45, 1700000000000, C4996, 0x80004005",
        "std::vector, ISBN 978-89-01-12345-6, 123-45-67890",
        "SELECT 123456 FROM t WHERE price > 1000000 AND day = '2024-08-01'",
        "WebSphere 8.5.1.2, Oracle 19.3.0.0, Chrome 120.0.0.0, firmware 22.214.171.124, 펌웨어 22.101.33.44",
        "As Section 4.2.1.3 explains (see § 40.51.62.3), 제4.2.1.3절과 41.52.63.4절",
        "Mozilla/5.0 (X11) Chrome/121.52.33.44 Safari/537.36, numpy==51.26.44.2, tool-51.62.73.4.jar",
        "192.168.0.1, 172.16.4.5, 10.0.0.0/8, 203.0.113.0/24",
        "sizes 256 512 1024 2048 and 300 400 5000, | 250 300 1200 | 260 310 1250 |, 300-400-5000 mm",
        "+10 20 30 40 points, +20 30 40 50, +1 000 000 000, 2048 4096 8192 1024",
        "8801101748332, EAN 5901234123457, 9783161484100, 036000291452, 1700000000123",
        "IMEI 490154203237518, order number 4539148803436467, 주문번호는 5425233430109903, 4111111111116",
    ],
)
def test_what_only_looks_like_personal_data_stays(text):
    assert pii.mask(text)[0] == text


def test_only_the_kinds_that_are_named_are_masked():
    text = "a.b@example.com, 010-1234-5678, 192.0.2.55"
    assert pii.mask(text, ["phone"]) == ("a.b@example.com, [PHONE], 192.0.2.55", {"phone": 1})
    assert parse(DataCurationConfig, {"sources": [{"path": "x", "name": "s"}], "mask": []}).mask == []
    with pytest.raises(ConfigError, match="mask"):
        parse(DataCurationConfig, {"sources": [{"path": "x", "name": "s"}], "mask": ["mail"]})


def test_check_digits():
    # 5+3·9+0+3·1+2+3·3+4+3·1+2+3·3+4+3·5 = 83, and 7 to 90; 83 and 8 is no ten
    assert pii.is_barcode("5901234123457") and not pii.is_barcode("5901234123458")
    # 4 5 3 9 1 4 8 8 0 3 4 3 6 4 6 7: every second from the right doubled, digits summed: 80
    assert pii.is_card_number("4539148803436467") and not pii.is_card_number("4539148803436468")
    # 9·2 + 1·5 + 1·7 + 1·8 + 2·9 + 3·2 + 4·3 + 5·4 + 6·5 = 124; (11 − 124 mod 11) mod 10 = 8
    assert pii.is_resident_number("9001011234568") and not pii.is_resident_number("9001011234567")


def test_cleaning_repairs_prose_and_leaves_code():
    text = "Itâ€™s a cafÃ©\u200b \x07\r\n\n\n\nend  \n```sql\nSELECT  'cafÃ©'  \n\n\n\nFROM t\n```\n"
    assert clean.clean(text) == "It’s a café\n\nend\n```sql\nSELECT  'cafÃ©'  \n\n\n\nFROM t\n```"
    assert clean.clean("\u1112\u1161\u11ab\u2028\u1100\u1173\u11af") == "한\n글"
    assert clean.clean("“인용” & ‘따옴표’ <b>") == "“인용” & ‘따옴표’ <b>"


def test_boilerplate_is_what_many_documents_begin_or_end_with():
    menu = "Home | Shop | About us | Contact"
    texts = [f"{menu}\n# Orders\nText number {number} of the handbook\n```\n{menu}\n```" for number in range(12)]
    texts += [f"Only text {number} here" for number in range(12)]

    def boilerplate(texts):
        hashes = [hashed for text in texts for hashed in clean.edge_line_hashes(text)]
        return clean.boilerplate_hashes(np.array(hashes, np.uint64), len(texts), 0.2)

    found = boilerplate(texts)
    assert len(found) == 1
    body = f"# Orders\nText number 3 of the handbook\n```\n{menu}\n```"
    assert clean.remove_boilerplate(texts[3], found) == (body, 1)
    assert clean.remove_boilerplate(texts[12], found) == (texts[12], 0)
    assert not boilerplate(texts[:9])  # nine are too few, however large their share
    assert not boilerplate(["Display the help of this command"] * 20)  # copies of a whole text, not a line of theirs


def test_code_is_left_alone_and_fences_that_never_close_cost_nothing():
    upper = partial(clean.on_prose, change=str.upper)
    assert upper("a\n```py\nb\n```\nc\n~~~\nd\n```\n~~~\ne") == "A\n```py\nb\n```\nC\n~~~\nd\n```\n~~~\nE"
    assert upper("a\n```py\nb") == "A\n```PY\nB"
    assert clean.without_code("a\n```\nb\n```\nc") == "a\n \nc"
    assert upper("```a\n" * 50_000) == "```A\n" * 50_000


def test_html_becomes_markdown():
    page = (
        "<html><head><title>T</title><style>p{}</style></head><body><nav><a>Menu</a></nav><h1>A &amp; B</h1>"
        "<p>one\n two<br>three <code>x</code></p><ul><li>first<li>second</ul>"
        '<pre><code class="language-sql">SELECT *\nFROM t</code></pre><footer>foot</footer></body></html>'
    )
    assert html_to_markdown(page) == (
        "# A & B\n\none two\nthree `x`\n\n- first\n- second\n\n```sql\nSELECT *\nFROM t\n```"
    )
    assert html_to_markdown("<nav>never closed<p>text") == "never closed\ntext"


def raw(value, uri="a.jsonl"):
    return RawRow(1, value, "", "", uri)


def test_the_text_of_a_row():
    source = SourceConfig(path="x", name="s")
    assert document_text(raw({"text": "---\ntitle: T\n---\nbody"}), source)[:2] == ("body", "")
    assert document_text(raw({"text": "---\nno front matter\n---\n"}), source)[0].startswith("---")
    assert document_text(raw({"text": "a <!-- no -->b\n```\n<!-- yes -->\n```"}), source)[0] == (
        "a b\n```\n<!-- yes -->\n```"
    )
    for value, reason in ((None, "missing_field"), (3, "wrong_type"), (["a"], "wrong_type"), (" ", "empty")):
        assert document_text(raw({"text": value}), source)[:2] == ("", reason)
    assert document_text(raw({}), source)[:2] == ("", "missing_field")
    columns = SourceConfig(path="x", name="s", text="{title}: {price}")
    assert document_text(raw({"title": "tea", "price": 4}), columns)[:2] == ("tea: 4", "")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (ENGLISH, "en"),
        (KOREAN, "ko"),
        ("`SELECT name FROM customers` 문은 customers 표의 name 열을 읽는다", "ko"),
        ("Le magasin ouvre à huit heures et ferme tard le lundi.", "fr"),
        ("店は八時に開き、月曜日には早く閉まります。", "ja"),
        ("SELECT 1", "und"),
        ("```\nDer Laden öffnet um acht Uhr und schließt am Montag.\n```", "und"),
    ],
)
def test_language(text, code):
    assert language.detect(text, 0.5) == code


def curate(tmp_path, config):
    files = [
        {"uri": uri, "name": source.name, "bytes": 0, "sha256": ""}
        for source in config.inputs
        for uri in list_files(source.path)
    ]
    write_rows(tmp_path / "sources", "source/1", Source.table(files))
    outputs = {name: tmp_path / name for name in ("documents", "rejects", "coverage")}
    metrics = run(config, sources=tmp_path / "sources", **outputs)
    documents = read_table(tmp_path / "documents", "document/2").to_pylist()
    return metrics, documents, read_table(tmp_path / "rejects", "reject/1").to_pylist()


def fill(folder: Path) -> DataCurationConfig:
    folder.mkdir()
    good = [json.dumps({"text": text}) for text in (ENGLISH, KOREAN)]
    lines = [*good, "{broken", json.dumps({"text": 3}), json.dumps({"body": "x"}), json.dumps({"text": "ok"})]
    lines.append(json.dumps({"text": "Le magasin ouvre à huit heures et ferme tard le lundi. " * 2}))
    lines.append(json.dumps({"text": f"{ENGLISH} Write to a.b@example.com\u2028today."}, ensure_ascii=False))
    (folder / "a.jsonl").write_text("\n".join(lines), encoding="utf-8", newline="\n")
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(b"x" * 99)[:-9])
    (folder / "c.html").write_text(f"<html><nav>menu</nav><p>{ENGLISH}</p></html>")
    (folder / "d.txt").write_bytes(KOREAN.encode("cp949"))
    return DataCurationConfig(sources=[SourceConfig(path=str(folder), name="shop")])


def test_every_row_is_a_document_or_a_reject(tmp_path):
    metrics, documents, rejects = curate(tmp_path, fill(tmp_path / "raw"))
    assert [row["source"] for row in documents] == [
        "shop:a.jsonl#1",
        "shop:a.jsonl#2",
        "shop:a.jsonl#8",
        "shop:c.html#0",
    ]
    assert {row["source"]: row["reason"] for row in rejects} == {
        "shop:a.jsonl#3": "broken_json",
        "shop:a.jsonl#4": "wrong_type",
        "shop:a.jsonl#5": "missing_field",
        "shop:a.jsonl#6": "too_short",
        "shop:a.jsonl#7": "language",
        "shop:b.jsonl.gz#0": "broken_file",
        "shop:d.txt#0": "bad_encoding",
    }
    assert documents[2]["text"] == f"{ENGLISH} Write to [EMAIL]\ntoday."
    assert [row["language"] for row in documents] == ["en", "ko", "en", "en"]
    manifest = read_manifest(tmp_path / "documents")
    assert manifest.rows_in == 11 and manifest.rows == 4 and sum(manifest.dropped.values()) == 7
    assert metrics["data_curation/masked_email"] == 1 and metrics["data_curation/rejects_language"] == 1


def test_the_same_data_elsewhere_give_the_same_digest(tmp_path):
    digests = []
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        curate(tmp_path / place, fill(tmp_path / place / "raw"))
        digests.append(read_manifest(tmp_path / place / "documents").digest)
    assert digests[0] == digests[1]


def test_any_number_of_workers_and_any_batch_gives_the_same_bytes(tmp_path, monkeypatch):
    digests = []
    for batch in (1, 1_000):  # rows alone go to worker processes, a thousand stay here
        monkeypatch.setattr(step, "ROWS_PER_BATCH", batch)
        place = tmp_path / str(batch)
        place.mkdir()
        curate(place, fill(place / "raw"))
        digests.append([read_manifest(place / name).digest for name in ("documents", "rejects", "coverage")])
    assert digests[0] == digests[1]


def test_ray_gives_the_same_bytes(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    digests = []
    for where in ("here", "ray"):
        place = tmp_path / where
        place.mkdir()
        if where == "ray":
            ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
            monkeypatch.setenv("RAY_ADDRESS", "auto")
            monkeypatch.setattr(step, "ROWS_PER_BATCH", 3)
        try:
            curate(place, fill(place / "raw"))
        finally:
            ray.shutdown()
        digests.append([read_manifest(place / name).digest for name in ("documents", "rejects", "coverage")])
    assert digests[0] == digests[1]


def test_what_one_rule_alone_drops_and_what_the_corpus_covers_are_counted(tmp_path):
    config = fill(tmp_path / "raw").model_copy(
        update={
            "wanted": [
                WantedSlice(name="korean", documents=5, language="ko"),
                WantedSlice(name="mail", documents=1, pattern=r"(?i)write to"),
            ]
        }
    )
    metrics, documents, _ = curate(tmp_path, config)
    assert metrics["data_curation/rejects_only_too_short"] == 1
    rows = read_table(tmp_path / "coverage", "coverage/1").to_pylist()
    found = {(row["dimension"], row["slice"]): (row["documents"], row["wanted"]) for row in rows}
    assert found["language", "ko"] == (1, 0) and found["language", "en"] == (3, 0)
    assert found["wanted", "korean"] == (1, 5) and found["wanted", "mail"] == (1, 1)
    assert sum(row["documents"] for row in rows if row["dimension"] == "length") == len(documents)


def test_a_learned_quality_drops_what_is_like_the_bad_examples(tmp_path):
    rng = random.Random(8)
    nouns = "shop lamp order table customer parcel shelf window garden teapot".split()
    sentence = "The {} near the {} belongs to the {}, as every visitor of the {} knows."
    good = [sentence.format(*rng.sample(nouns, 4)) for _ in range(60)]
    bad = [" ".join(rng.choices(nouns, k=14)) for _ in range(60)]
    for name, texts in (("good", good[:40]), ("bad", bad[:40]), ("docs", good[40:] + bad[40:])):
        lines = [json.dumps({"text": text, "written": f"2024-01-{len(text) % 28 + 1:02}"}) for text in texts]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    learned = {name: {"name": name, "path": str(tmp_path / f"{name}.jsonl")} for name in ("good", "bad")}
    config = DataCurationConfig.model_validate(
        {
            "sources": [{"name": "docs", "path": str(tmp_path / "docs.jsonl"), "time": "written"}],
            "learned_quality": learned,
            "quality_rules": [],
        }
    )
    metrics, documents, rejects = curate(tmp_path, config)
    assert {row["text"] for row in documents} == set(good[40:])
    assert {row["reason"] for row in rejects} == {"learned_quality"}
    assert all(row["quality"] > 0.5 and row["time"].startswith("2024-01-") for row in documents)
    assert metrics["data_curation/learned_roc_auc"] > 0.95


def test_nothing_left_is_told_with_reasons(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": "x"}\n' * 3)
    config = DataCurationConfig(sources=[SourceConfig(path=str(tmp_path / "a.jsonl"), name="shop")])
    with pytest.raises(DataError, match="shop.*a.jsonl row 1: no row has the field 'text'; its fields are: body"):
        curate(tmp_path, config)
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(DataError, match="no rows in shop"):
        curate(tmp_path, config)


def test_two_sources_of_one_name_are_refused():
    source = {"path": "x", "name": "shop"}
    with pytest.raises(ConfigError, match="share the name shop"):
        parse(DataCurationConfig, {"sources": [source, source]})


def test_personal_data_of_the_labelled_set_are_masked_and_look_alikes_stay():
    marks = re.compile(r"⟦(\w+):([^⟧]*)⟧")
    labelled = (Path(__file__).parents[3] / "data" / "pii.txt").read_text(encoding="utf-8").splitlines()
    wrong = []
    for line in labelled:
        text = marks.sub(lambda match: match[2], line)
        expected = marks.sub(lambda match: pii.PLACEHOLDERS[match[1]], line)
        if pii.mask(pii.mask_secrets(text)[0])[0] != expected:
            wrong.append(text)
    # An address of a repository has the form of an e-mail address.
    assert wrong == ["git clone git@example.invalid was mistyped; user@localhost too."]


def test_secrets_are_masked_in_code_too(tmp_path):
    text = "Set the key in the settings before the first start of the day:\n\n```\nKEY=AKIAIOSFODNN7EXAMPLE\n```"
    assert "KEY=[KEY]" in step._mask(text, pii.KINDS)[0]
    assert step._mask(text, ["email"]) == (text, {})
