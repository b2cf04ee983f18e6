"""Files that pods read: put on an object store under their content, and fetched into a cache, over HTTP."""

import hashlib
from concurrent.futures import ThreadPoolExecutor

import pytest
from s3_server import BUCKET

from bloomery.components.core import artifact, uploads
from bloomery.components.core.config import digest
from bloomery.components.core.errors import DataError
from bloomery.components.core.modelling import checkpoints


@pytest.fixture
def store(object_store, monkeypatch, tmp_path):
    monkeypatch.setenv("BLOOMERY_CACHE", str(tmp_path / "cache"))
    return object_store


def asked(store, method):
    """What was asked for by a method, as keys of the bucket."""
    paths = [request.partition("?")[0] for request in store.requests if request.startswith(f"{method} /{BUCKET}/")]
    return [path.removeprefix(f"{method} /{BUCKET}/") for path in paths]


def change(store, key, data):
    store.client.put_object(Bucket=BUCKET, Key=key, Body=data)


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "my data"
    (place / "가").mkdir(parents=True)
    (place / "a.jsonl").write_bytes(b'{"q": 1}\n')
    (place / "가" / "b.jsonl").write_bytes(b"b")
    return place


ONE, TWO = (hashlib.sha256(data).hexdigest() for data in (b'{"q": 1}\n', b"b"))


def test_a_file_lies_under_its_content_and_is_sent_once(store, folder):
    file = folder / "a.jsonl"
    uri = uploads.uploaded(file, [file], "s3://bucket/mine/")
    assert uri == f"s3://bucket/mine/sha256-{ONE}/a.jsonl"
    assert uploads.uploaded(file, [file], "s3://bucket/mine") == uri
    assert asked(store, "PUT") == [f"mine/sha256-{ONE}/a.jsonl"]
    fetched = uploads.fetched(uri)
    assert fetched.read_bytes() == b'{"q": 1}\n' and fetched.name == "a.jsonl"
    assert uploads.fetched(uri) == fetched
    assert asked(store, "GET").count(f"mine/sha256-{ONE}/a.jsonl") == 1


def test_a_folder_keeps_its_names_and_goes_on_where_it_was_cut_off(store, folder):
    files = [folder / "a.jsonl", folder / "가" / "b.jsonl"]
    whole = digest({"a.jsonl": ONE, "가/b.jsonl": TWO})
    uri = uploads.uploaded(folder, files, "s3://bucket/mine")
    assert uri == f"s3://bucket/mine/sha256-{whole}/my data"
    assert len(asked(store, "PUT")) == 3 and asked(store, "PUT")[-1] == f"mine/sha256-{whole}/files.json"
    # The sender was killed before its last object.
    store.client.delete_object(Bucket=BUCKET, Key=f"mine/sha256-{whole}/files.json")
    assert uploads.uploaded(folder, files, "s3://bucket/mine") == uri
    assert len(asked(store, "PUT")) == 4
    fetched = uploads.fetched(uri)
    names = {file.relative_to(fetched).as_posix() for file in fetched.rglob("*") if file.is_file()}
    assert names == {"a.jsonl", "가/b.jsonl"}
    (folder / "a.jsonl").write_bytes(b"changed")
    assert uploads.uploaded(folder, files, "s3://bucket/mine") != uri


def test_what_is_not_what_its_digest_says_is_refused(store, folder):
    file = folder / "a.jsonl"
    uri = uploads.uploaded(file, [file], "s3://bucket/mine")
    change(store, f"mine/sha256-{ONE}/a.jsonl", b'{"q": 2}\n')
    with pytest.raises(DataError, match="its sha256 is"):
        uploads.fetched(uri)
    with pytest.raises(DataError, match="no such object"):
        uploads.fetched("s3://bucket/mine/nothing")


@pytest.mark.parametrize("is_folder", [False, True])
def test_what_is_written_to_while_it_is_uploaded_does_not_lie_under_the_digest_of_before(store, folder, is_folder):
    """It lay there for good: no later upload of the right bytes replaced it, and each run with it failed."""
    file = folder / "a.jsonl"
    root, files = (folder, [file, folder / "가" / "b.jsonl"]) if is_folder else (file, [file])
    store.fail("stuck", "list-type")  # after the digests were computed, before anything is sent
    with ThreadPoolExecutor(1) as pool:
        told = pool.submit(uploads.uploaded, root, files, "s3://bucket/mine")
        assert store.stuck.wait(30)
        file.write_bytes(b'{"q": 1}\n{"q": 2}\n')
        store.release()
        with pytest.raises(DataError, match=r"a.jsonl: written to while it was uploaded; submit again"):
            told.result()
    assert not [name for name in store.objects("mine/") if name.endswith(("a.jsonl", uploads.LISTING))]
    file.write_bytes(b'{"q": 1}\n')
    assert uploads.fetched(uploads.uploaded(file, [file], "s3://bucket/mine")).read_bytes() == b'{"q": 1}\n'


def test_a_file_that_goes_away_or_a_listing_that_is_none_is_told(store, folder):
    with pytest.raises(DataError, match="no such file while uploading"):
        uploads.uploaded(folder, [folder / "gone"], "s3://bucket/mine")
    uri = uploads.uploaded(folder, [folder / "a.jsonl"], "s3://bucket/mine")
    change(store, f"{uri.removeprefix('s3://bucket/').rpartition('/')[0]}/{uploads.LISTING}", b"\xff{")
    with pytest.raises(DataError, match="not the listing of its digest; delete it and submit again"):
        uploads.fetched(uri)


def test_a_path_of_this_machine_is_itself(folder):
    assert uploads.fetched(str(folder)) == folder == uploads.fetched(f"file://{folder}")


def test_a_model_of_a_store_is_checked_by_its_manifest(store, folder):
    with artifact.lineage("sft", {}, {}):
        artifact.seal(folder, "model/1")
    for file in folder.rglob("*"):
        if file.is_file():
            change(store, f"models/best/{file.relative_to(folder).as_posix()}", file.read_bytes())
    found = checkpoints.named("base_model", "s3://bucket/models/best", "main")
    assert (found / "가" / "b.jsonl").read_bytes() == b"b"
    change(store, "models/best/a.jsonl", b'{"q": 3}\n')
    with pytest.raises(DataError, match="its sha256 is"):
        checkpoints.named("base_model", "s3://bucket/models/best", "main")
