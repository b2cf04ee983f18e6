"""Every line of a file is a row or a counted problem."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from bloomery.components.core.config import parse
from bloomery.components.core.data.formats import RawRow
from bloomery.components.core.data.tables import RowSource, content_position, format_of, list_files, read_rows, select
from bloomery.components.core.errors import ConfigError, DataError, MissingExtraError, ServiceError

COMPRESSORS = {".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress, ".zst": zstandard.compress}

LINES = (
    '{"text": "한글 a\u2028b"}\n'.encode()  # U+2028 is a line end to str.splitlines, not to JSON lines
    + b'{"text": "cut off\n'
    + b'["a", "list"]\n'
    + b"\n"
    + b'{"text": "caf\xe9"}\n'  # Latin-1
    + b'{"text": "\\ud83d"}\n'  # half of a surrogate pair
    + b'{"text": "\x00"}\n'
    + b'{"score": NaN}\n'
    + b"[" * 100_000 + b"\n"
    + b'{"text": "last, without a line end"}'
)
EXPECTED = [
    (1, ""),
    (2, "broken_json"),
    (3, "wrong_type"),
    (5, "bad_encoding"),
    (6, "bad_encoding"),
    (7, "broken_json"),
    (8, "broken_json"),
    (9, "broken_json"),
    (10, ""),
]


def write(path, data):
    path.write_bytes(data)
    return str(path)


def outcome(uri):
    return [(row.line, row.problem) for row in read_rows(uri)]


@pytest.mark.parametrize("suffix", ["", *COMPRESSORS])
def test_each_line_is_a_row_or_a_problem_with_its_line(tmp_path, suffix):
    compress = COMPRESSORS.get(suffix, bytes)
    uri = write(tmp_path / f"rows.jsonl{suffix}", compress(LINES))
    assert outcome(uri) == EXPECTED
    rows = list(read_rows(uri))
    assert rows[0].value == {"text": "한글 a\u2028b"}
    assert rows[1].raw == '{"text": "cut off'
    assert len(rows[7].raw) == 500
    assert all(row.uri == uri for row in rows)


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_a_truncated_archive_is_one_problem_after_what_could_be_read(tmp_path, suffix):
    line = json.dumps({"text": random.Random(0).randbytes(50_000).hex()}).encode() + b"\n"
    whole = COMPRESSORS[suffix](line * 3)
    found = outcome(write(tmp_path / f"cut.jsonl{suffix}", whole[:-1000]))
    assert found[-1][1] == "broken_file"
    assert all(problem == "" for _, problem in found[:-1])
    assert outcome(write(tmp_path / f"junk.jsonl{suffix}", b"not an archive")) == [(0, "broken_file")]


def test_a_second_zstd_frame_is_read(tmp_path):
    data = zstandard.compress(b'{"n": 1}\n') + zstandard.compress(b'{"n": 2}\n')
    assert [row.value for row in read_rows(write(tmp_path / "a.jsonl.zst", data))] == [{"n": 1}, {"n": 2}]


def test_json_holds_an_array_an_object_or_lines(tmp_path):
    assert outcome(write(tmp_path / "array.json", b'[{"n": 1}, 2, {"t": "\\udc00"}]')) == [
        (1, ""),
        (2, "wrong_type"),
        (3, "bad_encoding"),
    ]
    assert outcome(write(tmp_path / "object.json", b'\xef\xbb\xbf{"n": 1}')) == [(1, "")]
    assert outcome(write(tmp_path / "lines.json", b'{"n": 1}\n{"n": 2}\n{')) == [(1, ""), (2, ""), (3, "broken_json")]
    assert outcome(write(tmp_path / "broken.json", b'[{"n": 1},')) == [(0, "broken_json")]
    assert outcome(write(tmp_path / "empty.json", b"\n")) == []


def test_csv_rows_span_lines_and_keep_their_first_line(tmp_path):
    uri = write(tmp_path / "a.csv", b'\xef\xbb\xbfid,text\n1,"two\nlines"\n2,\xff\n3\n\n4,\x00ok\n')
    assert outcome(uri) == [(2, ""), (4, "bad_encoding"), (5, "wrong_columns"), (7, "")]
    assert next(iter(read_rows(uri))).value == {"id": "1", "text": "two\nlines"}
    long = "x" * 300_000
    assert next(iter(read_rows(write(tmp_path / "long.csv", f"t\n{long}\n".encode())))).value == {"t": long}
    assert outcome(write(tmp_path / "twice.csv", b"a,a\n1,2\n")) == [(1, "wrong_columns")]
    assert [row.value for row in read_rows(write(tmp_path / "a.tsv", b"a\tb\n1\t2\n"))] == [{"a": "1", "b": "2"}]


def test_parquet(tmp_path):
    pq.write_table(pa.table({"text": ["a", None], "n": [1, 2]}), tmp_path / "a.parquet")
    uri = str(tmp_path / "a.parquet")
    assert [row.value for row in read_rows(uri)] == [{"text": "a", "n": 1}, {"text": None, "n": 2}]
    data = (tmp_path / "a.parquet").read_bytes()
    assert len(outcome(write(tmp_path / "b.parquet.gz", gzip.compress(data)))) == 2
    assert outcome(write(tmp_path / "cut.parquet", data[:-30])) == [(0, "broken_file")]
    wrong = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff"))
    pq.write_table(pa.table({"text": wrong}), tmp_path / "bytes.parquet")
    assert outcome(str(tmp_path / "bytes.parquet")) == [(1, "bad_encoding")]


def test_a_text_file_is_one_row(tmp_path):
    uri = write(tmp_path / "a.md", "\ufeff# 제목\r\n".encode())
    assert list(read_rows(uri)) == [RawRow(0, {"text": "# 제목\r\n"}, "", "\ufeff# 제목\r\n", uri)]
    assert outcome(write(tmp_path / "b.txt", "공지".encode("cp949"))) == [(0, "bad_encoding")]
    assert outcome(write(tmp_path / "c.png", b"\x89PNG")) == [(0, "unknown_format")]
    assert format_of("x/a.JSONL.GZ") == "jsonl"
    assert format_of("https://host/a.csv?version=2") == "csv"


def test_files_of_a_folder_are_sorted_and_hidden_ones_left_out(tmp_path):
    for name in ("b.txt", "a/c.txt", ".hidden", ".git/d.txt", "a/.e.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    expected = [str(tmp_path / "a/c.txt"), str(tmp_path / "b.txt")]
    assert list_files(str(tmp_path)) == expected
    assert list_files(str(tmp_path / "**/*.txt")) == expected
    assert list_files(str(tmp_path / "b.txt")) == expected[1:]
    assert list_files(f"file://{tmp_path}/b.txt") == expected[1:]


def test_what_cannot_be_listed_is_told(tmp_path):
    latin = os.fsencode(tmp_path / "latin") + b"/caf\xe9.txt"
    (tmp_path / "latin").mkdir()
    with open(latin, "wb"):
        pass
    with pytest.raises(DataError, match="not UTF-8"):
        list_files(str(tmp_path / "latin"))
    os.remove(latin)
    with pytest.raises(DataError, match="no file there"):
        list_files(str(tmp_path / "nothing"))
    with pytest.raises(DataError, match="no file there"):
        list_files(str(tmp_path / "latin"))
    with pytest.raises(DataError, match="unknown protocol 'foo'"):
        list_files("foo://bucket/key")
    with pytest.raises(ServiceError, match="did not answer"):
        list_files("http://localhost:9/rows.jsonl")
    with pytest.raises(DataError):
        list(read_rows(str(tmp_path / "gone.jsonl")))


def test_a_missing_package_is_named_with_its_pip_line():
    pytest.importorskip("fsspec")
    try:
        import gcsfs  # noqa: F401

        pytest.skip("gcsfs is installed")
    except ImportError:
        pass
    with pytest.raises(MissingExtraError, match="pip install gcsfs"):
        list_files("gs://bucket/key")


def rows(count):
    values = [{"n": number, "language": "ko" if number % 2 else "en"} for number in range(count)]
    return [RawRow(number + 1, value, "", "") for number, value in enumerate(values)]


def test_disjoint_shares_are_disjoint_and_together_everything():
    low = list(select(rows(1000), RowSource(path="x", share=(0.0, 0.3))))
    high = list(select(rows(1000), RowSource(path="x", share=(0.3, 1.0))))
    assert sorted(row.line for row in low + high) == list(range(1, 1001))
    assert 250 < len(low) < 350


def test_a_share_follows_content_not_order():
    source = RowSource(path="x", share=(0.0, 0.5))
    assert {row.line for row in select(rows(100), source)} == {row.line for row in select(rows(100)[::-1], source)}
    assert content_position({"a": 1, "b": 2}) == content_position({"b": 2, "a": 1})


def test_limit_takes_the_first_by_hash_and_keeps_problems():
    broken = RawRow(1001, None, "broken_json", "{")
    chosen = list(select([*rows(1000), broken], RowSource(path="x", limit=3)))
    lowest = sorted(rows(1000), key=lambda row: content_position(row.value))[:3]
    assert {row.line for row in chosen} == {row.line for row in lowest} | {1001}
    assert [row.line for row in chosen] == sorted(row.line for row in chosen)


def test_where_compares_as_text_so_that_csv_and_pipeline_numbers_match():
    typed = [RawRow(1, {"week": 3}, "", ""), RawRow(2, {"week": "3"}, "", ""), RawRow(3, {"week": 4}, "", "")]
    assert [row.line for row in select(typed, RowSource(path="x", where={"week": 3.0}))] == [1, 2]
    assert [row.line for row in select(typed, RowSource(path="x", where={"month": 1}))] == []


@pytest.mark.parametrize("share", [[0.5, 0.5], [-0.1, 1], [0, 1.5], [0.9, 0.1]])
def test_a_share_outside_of_one_is_refused(share):
    with pytest.raises(ConfigError, match="0 <= low < high <= 1"):
        parse(RowSource, {"path": "x", "share": share})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission_is_told(tmp_path):
    uri = write(tmp_path / "a.jsonl", b"{}")
    os.chmod(uri, 0)
    with pytest.raises(DataError, match="permission denied"):
        list(read_rows(uri))
