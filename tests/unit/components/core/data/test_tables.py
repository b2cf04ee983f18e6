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
from bloomery.components.core.data import encodings
from bloomery.components.core.data.files import list_files
from bloomery.components.core.data.raw_rows import RawRow
from bloomery.components.core.data.tables import RowSource, content_position, format_of, read_rows, read_source, select
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
    (8, ""),
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


def test_links_of_a_folder_are_followed_once_and_none_leads_to_nothing(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "out").mkdir()
    for file in ("d/a.jsonl", "out/b.jsonl"):
        (tmp_path / file).write_text('{"a": 1}\n')
    (tmp_path / "d" / "linked").symlink_to(tmp_path / "out")
    (tmp_path / "out" / "round").symlink_to(tmp_path / "d")
    listed = [os.path.relpath(file, tmp_path / "d") for file in list_files(str(tmp_path / "d"))]
    assert listed == ["a.jsonl", "linked/b.jsonl"]
    (tmp_path / "d" / "gone.jsonl").symlink_to("/nowhere")
    with pytest.raises(DataError, match="gone.jsonl: a link to /nowhere, where nothing is"):
        list_files(str(tmp_path / "d"))


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


def test_rows_on_s3_are_read_whole_or_not_at_all(object_store):
    text = "".join(json.dumps({"n": number}) + "\n" for number in range(20_000))
    object_store.client.put_object(Bucket="bucket", Key="store/rows.jsonl", Body=text.encode())
    uri = f"{object_store.uri}/rows.jsonl"
    for fault in ("503", "reset", "torn"):
        object_store.fail(fault, "GET .*rows.jsonl")
        assert [row.value["n"] for row in read_rows(uri)] == list(range(20_000))
    object_store.fail("503", "GET .*rows.jsonl", times=5)
    with pytest.raises(ServiceError, match="did not answer in 5 attempts"):
        list(read_rows(uri))
    with pytest.raises(DataError, match="no file there"):
        list(read_rows(f"{object_store.uri}/other.jsonl"))


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
    nested = [RawRow(1, {"m": {"lang": "ko"}}, "", ""), RawRow(2, {"m": {"lang": "en"}}, "", "")]
    assert [row.line for row in select(nested, RowSource(path="x", where={"m.lang": "ko"}))] == [1]


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


KOREAN = "question,answer\n서울 사무실은 몇 시에 여나요?,오전 7시에 엽니다.\n부산은?,오전 8시에 엽니다.\n"


@pytest.mark.parametrize(
    ("text", "name", "looks"),
    [
        (KOREAN, "cp949", "cp949"),
        (KOREAN, "utf-16-le", "utf_16_le"),
        ("id,text\n1,東京の事務所は何時に開きますか\n2,大阪の店は八時に閉まります\n", "cp932", "cp932"),
        ("id,text\n1,北京办公室几点开门\n2,上海的商店晚上八点关门\n", "gb18030", "gb18030"),
        ("id,text\n1,Le café ouvre à huit heures\n2,la fenêtre est fermée\n", "cp1252", "cp1252"),
        ("id,text\n1,Офис открывается в семь утра\n2,Магазин закрыт\n", "cp1251", "cp1251"),
    ],
)
def test_bytes_of_another_encoding_are_told_by_what_they_look_like_and_read_by_the_key(tmp_path, text, name, looks):
    uri = write(tmp_path / "a.csv", text.encode(name))
    with pytest.raises(DataError, match=f"here.*bad_encoding at .*a.csv.*look like {looks} .*set `encoding: {looks}`"):
        list(read_source(RowSource(path=uri), [uri], "here"))
    source = parse(RowSource, {"path": uri, "encoding": looks})
    found = [list(row.value.values()) for row in read_source(source, [uri], "here")]
    assert found == [line.split(",") for line in text.splitlines()[1:]]


def test_a_stray_line_is_a_reject_and_no_guess(tmp_path):
    uri = write(tmp_path / "a.csv", "t\n한글\n다른 글\n또 다른\n".encode() + "café\n".encode("latin-1"))
    assert [(row.problem, row.hint) for row in read_rows(uri)] == [("", "")] * 3 + [("bad_encoding", "")]
    uri = write(tmp_path / "b.csv", "t\n한글\n".encode("cp949") + b"\x81\n")
    rows = list(read_rows(uri, RowSource(path=uri, encoding="euc-kr")))
    assert [(row.problem, row.hint) for row in rows] == [("", ""), ("bad_encoding", "not all of it is cp949")]


@pytest.mark.parametrize(
    "head", ['<meta charset="euc-kr">', "<meta http-equiv='a' content='text/html; charset=ks_c_5601-1987'>"]
)
def test_a_page_is_read_as_it_declares_unless_it_is_utf_8(tmp_path, head):
    page = f"<html><head>{head}</head><p>똠방각하의 배송 안내</p></html>"  # the first syllable is in cp949 alone
    for name in ("cp949", "utf-8"):
        (row,) = read_rows(write(tmp_path / f"{name}.html", page.encode(name)))
        assert row.value == {"text": page}
    assert outcome(write(tmp_path / "a.txt", page.encode("cp949"))) == [(0, "bad_encoding")]
    assert encodings.declared(b'<?xml version="1.0" encoding="Shift_JIS"?><html>') == "cp932"
    assert encodings.declared(b"<meta charset=utf-16>") == encodings.declared(b"<meta charset=x-nobody>") == ""


@pytest.mark.parametrize(("mark", "name"), [("", ";"), ("", "\t"), ("", "|")])
def test_another_delimiter_is_told_and_read_by_its_key(tmp_path, mark, name):
    uri = write(tmp_path / "a.csv", f"question{name}answer\nWhen, then?{name}At 7\nWhere?{name}There\n".encode())
    told = f"a.csv.*set `delimiter: {json.dumps(name)}`".replace("|", "[|]").replace("\\", "\\\\")
    with pytest.raises(DataError, match=told):
        list(read_source(RowSource(path=uri), [uri], "here", ["{question}"]))
    source = parse(RowSource, {"path": uri, "delimiter": name})
    assert [row.value["answer"] for row in read_source(source, [uri], "here", ["{question}"])] == ["At 7", "There"]


def test_what_excel_writes_is_read(tmp_path):
    data = "\ufeffsep=;\r\nid;text\r\n1;a, b\r\n".encode()
    assert [(row.line, row.value) for row in read_rows(write(tmp_path / "a.csv", data))] == [
        (3, {"id": "1", "text": "a, b"})
    ]
    data = "\ufeffid\ttext\r\n1\t글\r\n".encode("utf-16-le")
    assert [row.value for row in read_rows(write(tmp_path / "b.tsv", data))] == [{"id": "1", "text": "글"}]


@pytest.mark.parametrize("wrong", [{"encoding": "klingon"}, {"encoding": "base64"}, {"delimiter": ", "}])
def test_a_wrong_key_of_a_file_is_refused(wrong):
    with pytest.raises(ConfigError, match="expected"):
        parse(RowSource, {"path": "x", **wrong})


CARD = "---\nlicense: mit\ntask_categories:\n- question-answering\n---\n# Card\n"


def test_in_a_folder_from_a_hub_the_rows_are_the_data(tmp_path):
    for name in ("README.md", "LICENSE", "usage.md", "dataset_infos.json", "load.py", "data/a.jsonl.gz", "data/b.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(CARD if name == "README.md" else "{}")
    assert list_files(str(tmp_path)) == [str(tmp_path / "data/a.jsonl.gz")]
    assert list_files(str(tmp_path / "*.md")) == [str(tmp_path / "README.md"), str(tmp_path / "usage.md")]


def test_pages_beside_rows_are_data_and_a_readme_of_pages_too(tmp_path):
    for name in ("README.md", "LICENSE.txt", "guide.md", "rows.csv"):
        (tmp_path / name).write_text("# About\n")
    assert [file.rpartition("/")[2] for file in list_files(str(tmp_path))] == ["guide.md", "rows.csv"]
    (tmp_path / "rows.csv").unlink()
    assert len(list_files(str(tmp_path))) == 3
