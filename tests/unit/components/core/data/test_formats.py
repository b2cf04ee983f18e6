"""Hostile files: whatever the bytes, every row is there or counted with a reason, in bounded memory."""

from __future__ import annotations

import bz2
import datetime
import gzip
import json
import lzma
import math
import random
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from bloomery.components.core.data import csv_rows, json_rows, parquet_rows, raw_rows
from bloomery.components.core.data.tables import RowSource, content_position, read_rows
from bloomery.components.data_curation.clean import clean

COMPRESSORS = {".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress, ".zst": zstandard.compress}


def write(path, data):
    path.write_bytes(data)
    return str(path)


def outcome(uri):
    return [(row.line, row.problem) for row in read_rows(uri)]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_line_of_200_mb_costs_bounded_memory_and_the_lines_after_it_are_read(tmp_path, suffix):
    compress = {"": bytes, ".gz": lambda data: gzip.compress(data, 1), ".zst": zstandard.compress}[suffix]
    line = b'{"text": "%s"}\n' % (b"x" * 200_000_000)
    uri = write(tmp_path / f"a.jsonl{suffix}", compress(b'{"n": 1}\n' + line + b'{"n": 3}\n'))
    del line
    tracemalloc.start()
    rows = list(read_rows(uri))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [(row.line, row.problem) for row in rows] == [(1, ""), (2, "too_large"), (3, "")]
    assert rows[1].raw.startswith('{"text": "xxx') and len(rows[1].raw) == 500
    assert rows[2].value == {"n": 3}
    assert peak < 2 * raw_rows.MAX_ROW_BYTES


def limit(monkeypatch, num_bytes):
    for module in (raw_rows, json_rows, csv_rows, parquet_rows):
        monkeypatch.setattr(module, "MAX_ROW_BYTES", num_bytes)


def test_a_line_of_the_limit_is_read_and_one_byte_more_is_not(tmp_path, monkeypatch):
    limit(monkeypatch, 20)
    monkeypatch.setattr(raw_rows, "BLOCK_BYTES", 7)
    line = b'{"n": "1234567890a"}'
    assert len(line) == 20
    data = line + b"\n" + line[:-2] + b'b"}\n' + b"\n" + line
    assert outcome(write(tmp_path / "a.jsonl", data)) == [(1, ""), (2, "too_large"), (4, "")]
    assert outcome(write(tmp_path / "b.jsonl", data + b" ")) == [(1, ""), (2, "too_large"), (4, "too_large")]


@pytest.mark.parametrize("name", ["a.json", "a.txt", "a.md", "a.html", "a.parquet"])
def test_a_file_that_is_read_at_once_tells_the_limit_and_what_to_do(tmp_path, monkeypatch, name):
    limit(monkeypatch, 1000)
    for suffix, compress in COMPRESSORS.items():
        (row,) = read_rows(write(tmp_path / f"{name}{suffix}", compress(b"[" * 1_000_000)))
        assert (row.line, row.value, row.problem) == (0, None, "too_large")
        assert row.raw.startswith("longer than 1,000 bytes") and ";" in row.raw


def test_json_lines_in_a_long_file_named_json_are_still_read(tmp_path, monkeypatch):
    limit(monkeypatch, 50)
    assert outcome(write(tmp_path / "a.json", b'{"n": 1}\n' * 100)) == [(line, "") for line in range(1, 101)]
    (row,) = read_rows(write(tmp_path / "b.json", b"[" + b'{"n": 1},\n' * 100 + b'{"n": 1}]'))
    assert row.problem == "too_large" and "write the rows as JSON lines" in row.raw


def test_a_key_that_stands_twice_is_told_at_any_depth(tmp_path):
    lines = b'{"a": 1, "a" : 2}\n{"a": {"b": [{"c": 1, "c": 1}]}}\n{"a": {"c": 1}, "b": {"c": "\\"c\\": 2"}}\n'
    expected = [(1, "duplicate_keys"), (2, "duplicate_keys"), (3, "")]
    assert outcome(write(tmp_path / "a.jsonl", lines)) == expected
    assert outcome(write(tmp_path / "lines.json", lines)) == expected
    array = b"[%s]" % lines.strip().replace(b"\n", b", ")
    assert outcome(write(tmp_path / "array.json", array)) == expected
    assert outcome(write(tmp_path / "one.json", b'{"a": 1,\n"a": 2}')) == [(1, "duplicate_keys")]


def test_deep_nesting_is_told_and_what_passes_can_be_written_again(tmp_path):
    def nested(depth):  # objects and lists together
        return b'{"a": ' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"

    depths = (2, 128, 129, 700, 100_000)
    expected = [(1, ""), (2, ""), (3, "broken_json"), (4, "broken_json"), (5, "broken_json")]
    uri = write(tmp_path / "a.jsonl", b"\n".join(map(nested, depths)))
    assert outcome(uri) == expected
    assert 0 <= content_position(list(read_rows(uri))[1].value) < 1
    array = b"[" + b",".join(map(nested, depths[:4])) + b"]"
    assert outcome(write(tmp_path / "a.json", array)) == expected[:4]
    assert outcome(write(tmp_path / "b.json", nested(100_000))) == [(0, "broken_json")]
    wide = json.dumps({"a": [[1]] * 1000, "b": [{"c": 1}] * 1000}).encode()
    assert outcome(write(tmp_path / "wide.jsonl", wide)) == [(1, "")]


@pytest.mark.parametrize("constant", [b"NaN", b"Infinity", b"-Infinity"])
def test_a_number_that_is_not_json_costs_no_row(tmp_path, constant):
    for name, data in (("a.jsonl", b'{"n": %s, "text": "a"}'), ("a.json", b'[{"n": %s, "text": "a"}]')):
        uri = write(tmp_path / name, data % constant)
        assert outcome(uri) == [(1, "")]
        (row,) = read_rows(uri)
        assert row.value["text"] == "a" and not math.isfinite(row.value["n"]) and 0 <= content_position(row.value) < 1


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("text", ["The shop opens at nine", "가게는 아홉 시에 연다"])
def test_utf_16_and_32_are_read_by_their_mark_or_key_and_told_without(tmp_path, encoding, text):
    for name, content in {
        "a.txt": text,
        "a.html": f"<html><p>{text}</p></html>",
        "a.json": json.dumps([{"text": text}], ensure_ascii=False),
        "a.jsonl": json.dumps({"text": text}, ensure_ascii=False),
        "a.csv": f"id,text\n1,{text}\n",
    }.items():
        bare = "-" in encoding.removeprefix("utf-")
        uri = write(tmp_path / name, content.encode(encoding))
        rows = list(read_rows(uri))
        assert [row.problem for row in rows] == ["bad_encoding" if bare else ""], name
        (row,) = read_rows(uri, RowSource(path=uri, encoding=encoding))
        assert not row.problem and text in row.value["text"], name


def test_a_few_nuls_are_left_to_the_repair_and_many_are_not(tmp_path):
    page = "The shop opens at nine\0 and closes late."
    (row,) = read_rows(write(tmp_path / "a.txt", page.encode()))
    assert row.value == {"text": page} and clean(page) == page.replace("\0", "")
    wide = "\0".join("The shop opens at nine")
    lines = "\n".join(json.dumps({"text": text}) for text in (page, wide))
    assert outcome(write(tmp_path / "a.jsonl", lines.encode())) == [(1, ""), (2, "bad_encoding")]
    assert outcome(write(tmp_path / "a.csv", f"text\n{page}\n{wide}\n".encode())) == [(2, ""), (3, "bad_encoding")]
    pq.write_table(pa.table({"text": [page, wide]}), tmp_path / "a.parquet")
    assert outcome(str(tmp_path / "a.parquet")) == [(1, ""), (2, "bad_encoding")]


def test_a_quote_that_never_closes_swallows_no_row(tmp_path):
    rows = b'id,text\n1,a\n2,"open\n3,c\n4,"two\nlines"\n5,e\n'
    # The quote of row 4 closes that of row 2, and what follows it is no end of a cell.
    assert outcome(write(tmp_path / "a.csv", rows)) == [(2, ""), (3, "broken_csv"), (4, ""), (5, ""), (7, "")]
    uri = write(tmp_path / "b.csv", b'id,text\n1,"open\n2,b\n\n3,"c ""d"""\n')
    assert outcome(uri) == [(2, "broken_csv"), (3, ""), (5, "")]
    assert [row.value for row in read_rows(uri)][1:] == [{"id": "2", "text": "b"}, {"id": "3", "text": 'c "d"'}]
    assert outcome(write(tmp_path / "c.csv", b'id,text\n1,"a"b\n2,c\n')) == [(2, "broken_csv"), (3, "")]
    assert outcome(write(tmp_path / "d.csv", b'id,"text\n1,a\n')) == [(1, "broken_csv")]


def test_a_cell_above_the_limit(tmp_path, monkeypatch):
    limit(monkeypatch, 30)
    rows = b"id,text\n1,%s\n2,b\n" % (b"x" * 40)
    assert outcome(write(tmp_path / "a.csv", rows)) == [(2, "too_large"), (3, "")]
    rows = b'id,text\n1,"open\n' + b"2,b\n" * 20
    assert outcome(write(tmp_path / "b.csv", rows)) == [(2, "broken_csv"), *((line, "") for line in range(3, 23))]
    rows = b'id,text\n1,"open\n%s\n3,c\n' % (b"x" * 40)
    assert outcome(write(tmp_path / "c.csv", rows)) == [(2, "broken_csv"), (3, "too_large"), (4, "")]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_csv_of_every_system(tmp_path, end):
    uri = write(tmp_path / "a.csv", f'id,text{end}1,"two{end}lines"{end}2,b'.encode())
    assert [(row.line, row.value["text"]) for row in read_rows(uri)] == [(2, f"two{end}lines"), (4, "b")]


def test_fields_of_other_rows_are_not_read_as_nulls_of_a_parquet_row(tmp_path):
    calls = [[{"name": "f", "arguments": {"a": 1}}], [{"name": "g", "arguments": {"b": ["z"]}}]]
    pq.write_table(pa.Table.from_pylist([{"calls": one, "label": None} for one in calls]), tmp_path / "a.parquet")
    rows = [row.value for row in read_rows(str(tmp_path / "a.parquet"))]
    assert rows == [{"calls": one, "label": None} for one in calls]


def test_parquet_rows_are_read_one_by_one_where_a_batch_cannot_be(tmp_path):
    ends = pa.array([0, 2, 3, 5], pa.int32()).buffers()[1]
    text = pa.StringArray.from_buffers(3, ends, pa.py_buffer(b"ab\xffcd"))
    pq.write_table(pa.table({"text": text, "deep": [[{"a": [1]}]] * 3}), tmp_path / "a.parquet")
    assert outcome(str(tmp_path / "a.parquet")) == [(1, ""), (2, "bad_encoding"), (3, "")]
    late = pa.array([0, 2**60], pa.timestamp("us"))  # the year 38504
    pq.write_table(pa.table({"text": ["a", "b"], "time": late}), tmp_path / "late.parquet")
    assert outcome(str(tmp_path / "late.parquet")) == [(1, ""), (2, "wrong_type")]
    twice = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    pq.write_table(twice, tmp_path / "twice.parquet")
    assert outcome(str(tmp_path / "twice.parquet")) == [(0, "wrong_columns")]


def test_parquet_of_every_type_can_be_placed(tmp_path):
    row = {
        "list": [1, None],
        "struct": {"a": {"b": "c"}},
        "bytes": b"\xff",
        "time": datetime.datetime(2024, 1, 2),
        "map": [("k", 1)],
        "none": None,
    }
    schema = pa.schema(
        [
            ("list", pa.list_(pa.int64())),
            ("struct", pa.struct([("a", pa.struct([("b", pa.string())]))])),
            ("bytes", pa.binary()),
            ("time", pa.timestamp("us")),
            ("map", pa.map_(pa.string(), pa.int64())),
            ("none", pa.null()),
        ]
    )
    pq.write_table(pa.Table.from_pylist([row], schema), tmp_path / "a.parquet")
    (found,) = read_rows(str(tmp_path / "a.parquet"))
    assert found.value == row and 0 <= content_position(found.value) < 1


def test_a_wide_row_of_parquet_is_too_large_and_its_neighbours_are_read(tmp_path, monkeypatch):
    limit(monkeypatch, 1000)
    pq.write_table(pa.table({"text": ["a", "x" * 5000, "b"]}), tmp_path / "a.parquet")
    assert outcome(str(tmp_path / "a.parquet")) == [(1, ""), (2, "too_large"), (3, "")]


@pytest.mark.parametrize("suffix", ["", *COMPRESSORS])
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet", "html"])
def test_no_spoiled_byte_raises(tmp_path, kind, suffix):
    rng = random.Random(f"{kind}{suffix}")
    rows = [{"id": str(number), "text": f"고객 표 {number}"} for number in range(40)]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "good.parquet")
        data = (tmp_path / "good.parquet").read_bytes()
    else:
        data = {
            "jsonl": "\n".join(map(json.dumps, rows)),
            "json": json.dumps(rows),
            "csv": "id,text\n" + "".join(f'{row["id"]},"{row["text"]}"\n' for row in rows),
            "html": "".join(f"<p>{row['text']}</p>" for row in rows),
        }[kind].encode()
    good = COMPRESSORS.get(suffix, bytes)(data)
    for _ in range(40):
        bad = bytearray(good)
        for _ in range(rng.randrange(1, 4)):
            bad[rng.randrange(len(bad))] = rng.randrange(256)
        if rng.random() < 0.3:
            del bad[rng.randrange(len(bad)) :]
        for row in read_rows(write(tmp_path / f"bad.{kind}{suffix}", bytes(bad))):
            assert (row.value is None) == bool(row.problem)
