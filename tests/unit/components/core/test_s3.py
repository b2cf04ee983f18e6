"""Objects and trees on a real S3 server that fails on purpose: nothing lost, half published, or read half."""

import contextlib
import hashlib
import json
import logging
import random
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from json_api import JsonHandler
from s3_server import BUCKET, Server

from bloomery.components.core import s3, trees
from bloomery.components.core.errors import ConfigError, DataError, ServiceError

PART = 5 * 2**20
"""The least that S3 takes."""
BIG = bytes(range(251)) * 50_000


@pytest.fixture(autouse=True)
def told(caplog):
    caplog.set_level(logging.INFO, "bloomery")
    return caplog


@pytest.fixture
def files(tmp_path):
    """By name, a file with each content."""
    contents = {"empty": b"", "one": b"x", "deep/er": b"two"}
    for name, content in contents.items():
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_bytes(content)
    return tmp_path / "folder", contents


def attempts(server: Server, method: str) -> int:
    return sum(request.startswith(method) for request in server.requests)


def test_a_file_goes_up_in_parts_and_comes_down_the_same(object_store, tmp_path, monkeypatch):
    monkeypatch.setattr(s3, "PART_BYTES", PART)
    (tmp_path / "big").write_bytes(BIG)
    object_store.fail("503", "partNumber=2")
    object_store.fail("reset", "partNumber=3")
    object_store.fail("torn", "GET")
    s3.put({f"{object_store.uri}/big": tmp_path / "big"})
    assert attempts(object_store, "PUT") == 3 + 2
    s3.get(f"{object_store.uri}/big", tmp_path / "back", hashlib.sha256(BIG).hexdigest())
    assert (tmp_path / "back").read_bytes() == BIG
    first, second = (request for request in object_store.requests if request.startswith("GET"))
    assert "Range" not in first and "Range" in second  # what had come was not asked for again


@pytest.mark.parametrize("fault", ["503", "reset", "lost", "torn", "InternalError"])
def test_what_passes_is_tried_again_and_told(object_store, told, fault):
    state = random.getstate()
    uri = f"{object_store.uri}/a"
    for method in ("GET", "PUT"):
        object_store.fail(fault, f"{method} .*/a", times=2)
        assert s3.put_text(uri, method, first=method == "PUT") and s3.text(uri) == method
        assert ("(2 of 4)" in told.text) == (method == "GET" or fault != "torn")  # no answer to a PUT has a body
        told.clear()
        s3.delete(uri[:-2])
    assert random.getstate() == state  # a step's numbers do not depend on the network


def test_a_server_that_is_slow_is_waited_for_and_one_that_is_stuck_is_not(object_store, monkeypatch, told):
    monkeypatch.setattr(s3, "READ_SECONDS", 1)
    monkeypatch.setenv("AWS_EXECUTION_ENV", "stuck")  # a client of its own
    object_store.fail("slow", "PUT")
    object_store.fail("hung", "GET")
    s3.put_text(f"{object_store.uri}/a", "told")
    assert not told.text
    assert s3.text(f"{object_store.uri}/a") == "told" and "timeout" in told.text.lower()
    object_store.release()


def test_what_does_not_pass_in_time_is_a_service_error(object_store, tmp_path, monkeypatch):
    object_store.fail("503", "GET", times=99)
    with pytest.raises(ServiceError, match="did not answer in 5 attempts: ServiceUnavailable: told to answer 503"):
        s3.text(f"{object_store.uri}/a")
    assert attempts(object_store, "GET") == 5
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(ServiceError, match="Could not connect"):
        s3.put_text(f"{object_store.uri}/a", "told")


@pytest.mark.parametrize(
    ("code", "advice"),
    [("ExpiredToken", "renew the credentials"), ("AccessDenied", "need s3:ListBucket"), ("Odd", "check the URI")],
)
def test_what_a_store_refuses_is_told_at_once_with_its_reason(object_store, code, advice, told):
    object_store.fail(code, "GET", times=9)
    with pytest.raises(ConfigError, match=f"refuses: {code}: told to answer {code}; .*{advice}"):
        s3.text(f"{object_store.uri}/a")
    assert len(object_store.requests) == 1 and not told.text


def test_slips_of_the_settings_are_told(object_store, monkeypatch):
    with pytest.raises(ConfigError, match="NoSuchBucket: .*; make the bucket"):
        s3.put_text("s3://no-such-bucket/a", "told")
    for uri in ("gs://bucket/a", "s3://", "s3:///a", "s3://our bucket/a"):
        with pytest.raises(ConfigError, match="expected a folder or s3://bucket/prefix"):
            s3.is_uri(uri)
    assert s3.is_uri("s3://b") and not s3.is_uri("/folder")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost:9000")
    with pytest.raises(ConfigError, match="AWS_ENDPOINT_URL: Invalid endpoint: localhost:9000"):
        s3.text(f"{object_store.uri}/a")
    monkeypatch.setenv("AWS_ENDPOINT_URL", object_store.url)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(ConfigError, match="Unable to locate credentials"):
        s3.text(f"{object_store.uri}/a")


@pytest.mark.parametrize(
    ("status", "reason"),
    [(404, "refuses: 404: Not Found; check the URI, AWS_E"), (301, "301: go to https://elsewhere/; AWS_E")],
)
def test_an_address_that_is_no_stores_is_told(monkeypatch, tmp_path, status, reason):
    """A 404 was an object that is not there, with a traceback, and a redirect to https a RecursionError of botocore."""
    (tmp_path / "file").write_text("told")
    for name, value in {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_DEFAULT_REGION": "eu"}.items():
        monkeypatch.setenv(name, value)
    with no_store(status) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        with pytest.raises(ConfigError, match=reason):
            s3.names("s3://bucket/a")
        with pytest.raises(ConfigError, match=reason):
            s3.put({"s3://bucket/a": tmp_path / "file"})


@contextlib.contextmanager
def no_store(status):
    """The address of a server that answers each request with `status`."""

    class Handler(JsonHandler):
        def call(self, method):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(status)
            self.send_header("Location", "https://elsewhere/")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_PUT = do_HEAD = JsonHandler.do_POST

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_torn_upload_is_taken_back(object_store, tmp_path, monkeypatch):
    monkeypatch.setattr(s3, "PART_BYTES", PART)
    (tmp_path / "big").write_bytes(BIG)
    object_store.fail("503", "partNumber=3", times=99)
    with pytest.raises(ServiceError, match="did not answer in 5 attempts"):
        s3.put({f"{object_store.uri}/big": tmp_path / "big"})
    assert "Uploads" not in object_store.client.list_multipart_uploads(Bucket=BUCKET)
    assert object_store.objects() == {}


def test_the_first_of_two_stays(object_store):
    uri = f"{object_store.uri}/a"
    object_store.fail("lost", "PUT .*/a")  # the answer to the one that wrote it
    assert s3.put_text(uri, "first", first=True)
    assert not s3.put_text(uri, "second", first=True) and s3.text(uri) == "first"
    assert s3.put_text(uri, "third") and s3.text(uri) == "third"
    object_store.fail("NotImplemented", "PUT .*If-None-Match")
    assert s3.put_text(f"{uri}b", "first", first=True) and s3.text(f"{uri}b") == "first"


def test_a_certificate_needs_the_authority_that_signed_it(tmp_path, monkeypatch):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate(tmp_path / "own.pem"))
    server = Server(context)
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="AWS_CA_BUNDLE names the file"):
        s3.text(f"{server.uri}/a")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "own.pem"))
    with pytest.raises(ConfigError, match="NoSuchBucket"):  # it is asked
        s3.text("s3://nothing/a")
    server.stop()


def certificate(file):
    """A certificate of 127.0.0.1 that it signs itself, with its key."""
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    plain = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    pem = serialization.Encoding.PEM
    file.write_bytes(key.private_bytes(pem, *plain) + made.public_bytes(pem))
    return file


def test_a_tree_is_there_with_its_marker_and_not_before(object_store, files, tmp_path):
    folder, contents = files
    uri = f"{object_store.uri}/tree"
    object_store.fail("AccessDenied", "whole.json")
    with pytest.raises(ConfigError):
        trees.put(uri, {"f": folder}, first=True)
    assert trees.get(uri, {"f": tmp_path / "back"}) is None and not (tmp_path / "back").exists()
    assert len(object_store.objects()) == 3  # of no tree
    assert trees.put(uri, {"f": folder}, {"says": 1}, first=True)
    assert len(object_store.objects()) == 4 and trees.names(object_store.uri) == ["tree"]
    assert trees.get(uri, {"f": tmp_path / "back"}) == {"says": 1}
    back = {name: (tmp_path / "back" / name).read_bytes() for name in contents}
    assert back == contents and [file.name for file in tmp_path.iterdir() if "unfinished" in file.name] == []
    assert not trees.put(uri, {"f": folder}, {"says": 2}, first=True) and len(object_store.objects()) == 4
    assert trees.put(uri, {"f": folder}, {"says": 3}) and trees.get(uri, {"f": tmp_path / "back"}) == {"says": 3}


def test_a_marker_that_another_has_replaced_is_not_ours(object_store, files):
    uri = f"{object_store.uri}/tree"
    object_store.fail("slow", "GET .*whole.json")  # the look before the marker is written
    object_store.fail("stuck", "GET .*whole.json")  # and the one after it
    with ThreadPoolExecutor(1) as pool:
        ours = pool.submit(trees.put, uri, {"f": files[0]}, first=True)
        assert object_store.stuck.wait(60)
        s3.put_text(f"{uri}/other/f/t", "theirs")
        s3.put_text(f"{uri}/{trees.MARKER}", "theirs")
        object_store.release()
        assert ours.result() is False
    assert object_store.objects("store/tree/") == {"other/f/t": b"theirs", trees.MARKER: b"theirs"}


@pytest.mark.parametrize("damage", ["flipped", "gone", "outside", "no text", "another form"])
def test_a_tree_that_is_not_as_its_marker_says_is_none(object_store, files, tmp_path, damage, told):
    uri = f"{object_store.uri}/tree"
    trees.put(uri, {"f": files[0]})
    marker = json.loads(s3.text(f"{uri}/{trees.MARKER}"))
    if damage == "flipped":
        s3.put_text(f"{uri}/{marker['attempt']}/f/one", "y")
    elif damage == "gone":
        s3.delete(f"{uri}/{marker['attempt']}/f/deep")
    elif damage == "no text":
        s3.put_bytes(f"{uri}/{trees.MARKER}", b"\xff\xfe{")
    elif damage == "another form":
        s3.put_text(f"{uri}/{trees.MARKER}", json.dumps({**marker, "files": list(marker["files"])}))
    else:
        marker["files"]["f/../../outside"] = marker["files"].pop("f/one")
        s3.put_text(f"{uri}/{trees.MARKER}", json.dumps(marker))
    (tmp_path / "back").mkdir()
    assert trees.get(uri, {"f": tmp_path / "back"}) is None
    assert list((tmp_path / "back").iterdir()) == [] and "and is made again" in told.text
    assert object_store.objects() == {}
    assert trees.put(uri, {"f": files[0]}, first=True)


def test_what_cannot_be_deleted_is_told(object_store, told):
    s3.put_text(f"{object_store.uri}/a", "told")
    object_store.fail("AccessDenied", r"POST .*\?delete")
    s3.delete(object_store.uri)
    assert "1 objects" not in told.text and "not deleted, and no longer needed" in told.text
    assert "AccessDenied" in told.text and object_store.objects() == {"a": b"told"}
    s3.delete(object_store.uri)
    assert object_store.objects() == {}


def test_an_object_that_is_not_there_is_told(object_store, tmp_path):
    assert s3.text(f"{object_store.uri}/a") is None
    with pytest.raises(DataError, match="there is no such object"):
        s3.get(f"{object_store.uri}/a", tmp_path / "a")


def test_the_rules_that_clean_a_store_are_rules_of_s3(object_store):
    text = (Path(__file__).parents[4] / "infra" / "README.md").read_text(encoding="utf-8")
    rules = json.loads(text.split("```json")[1].split("```")[0])
    client = object_store.client
    client.put_bucket_lifecycle_configuration(Bucket=BUCKET, LifecycleConfiguration=rules)
    kept = client.get_bucket_lifecycle_configuration(Bucket=BUCKET)["Rules"]
    assert [rule["ID"] for rule in kept] == ["torn-uploads", "old-entries"]
    assert kept[0]["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 2}
    assert kept[1]["Expiration"]["Days"] == 60
