"""What a URI stands for, on a real S3 server that refuses and fails."""

import pytest

from bloomery.components.core.data.files import list_files
from bloomery.components.core.errors import ConfigError, DataError, ServiceError


@pytest.fixture
def listed(object_store):
    for name in ("a.txt", "more/b.txt", "more/c.csv", ".hidden/d.txt", "e/README.md", "e/rows.csv", "folder/"):
        object_store.client.put_object(Bucket="bucket", Key=f"d/{name}", Body=b"told")
    object_store.client.put_object(Bucket="bucket", Key="d.old/f.txt", Body=b"told")
    return lambda uri: [file.removeprefix("s3://bucket/") for file in list_files(f"s3://bucket/{uri}")]


@pytest.mark.parametrize("uri", ["d", "d/"])
def test_a_prefix_stands_for_what_is_visible_under_it(listed, uri):
    assert listed(uri) == ["d/a.txt", "d/e/README.md", "d/e/rows.csv", "d/more/b.txt", "d/more/c.csv"]


def test_a_glob_an_object_and_nothing(listed):
    assert listed("d/*.txt") == ["d/a.txt"]
    assert listed("d/**/*.txt") == ["d/a.txt", "d/more/b.txt"]
    assert listed("d/mor?/[bc].*") == ["d/more/b.txt", "d/more/c.csv"]
    assert listed("d/more/b.txt") == ["d/more/b.txt"]
    assert listed("d/e") == ["d/e/rows.csv"]
    for nothing in ("d/more/b", "d/*.json", "none/*"):
        with pytest.raises(DataError, match="no file there"):
            listed(nothing)


@pytest.mark.parametrize("uri", ["d", "d/a.txt", "d/*.txt"])
@pytest.mark.parametrize(
    ("code", "advice"),
    [("AccessDenied", "the credentials need s3:ListBucket of the bucket"), ("ExpiredToken", "renew the credentials")],
)
def test_what_the_store_refuses_is_told_with_its_code_and_what_to_do_and_asked_once(
    listed, object_store, uri, code, advice
):
    object_store.requests.clear()
    object_store.fail(code, "GET .*list-type", times=9)
    with pytest.raises(ConfigError, match=f"listing s3://bucket/d.*refuses: {code}: .*; {advice}") as told:
        listed(uri)
    assert told.value.exit_code == 2 and len(object_store.requests) == 1


def test_a_bucket_that_is_not_there(object_store):
    with pytest.raises(ConfigError, match="NoSuchBucket: .*; make the bucket, or correct its name"):
        list_files("s3://none/d")


def test_what_passes_is_tried_again_and_told(listed, object_store, caplog):
    caplog.set_level("INFO", logger="bloomery")
    object_store.fail("503", "GET .*list-type")
    object_store.fail("reset", "GET .*list-type")
    assert len(listed("d")) == 5
    assert [line for line in caplog.messages if "listing" in line or "ListObjects" in line]
    object_store.fail("503", "GET .*list-type", times=9)
    with pytest.raises(ServiceError, match="did not answer in 5 attempts"):
        listed("d")
