import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from bloomery.components.core.config import parse
from bloomery.components.core.errors import ConfigError
from bloomery.monitoring.alerts import MAX_ATTEMPTS, send
from bloomery.monitoring.config import AlertsConfig

MESSAGE = {"text": "드리프트: sql:3", "action": "retrain"}


@pytest.fixture
def receiver():
    """A server that answers with the given statuses in turn, then 200, and keeps what it was sent."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.server.received.append((self.path, self.headers["Content-Type"], json.loads(body)))
            self.send_response(self.server.statuses.pop(0) if self.server.statuses else 200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.received, server.statuses = [], []
    server.url = f"http://127.0.0.1:{server.server_port}/services/T0/secret"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def variable(receiver, monkeypatch):
    monkeypatch.setenv("TEAM_WEBHOOK", receiver.url)


def test_a_receiver_that_fails_twice_gets_it(receiver):
    receiver.statuses = [500, 429]
    assert send("TEAM_WEBHOOK", MESSAGE, pause_seconds=0.01)
    assert receiver.received == [("/services/T0/secret", "application/json; charset=utf-8", MESSAGE)] * 3


def test_a_refusal_is_not_repeated_and_the_address_stays_secret(receiver, caplog):
    receiver.statuses = [404]
    assert not send("TEAM_WEBHOOK", MESSAGE, pause_seconds=0.01)
    assert len(receiver.received) == 1
    assert "127.0.0.1 answered with status 404" in caplog.text and "secret" not in caplog.text


def test_nothing_is_raised_where_it_always_fails(receiver, caplog):
    receiver.statuses = [503] * 10
    assert not send("TEAM_WEBHOOK", MESSAGE, pause_seconds=0.001)
    assert len(receiver.received) == MAX_ATTEMPTS
    receiver.shutdown()
    receiver.server_close()
    assert not send("TEAM_WEBHOOK", MESSAGE, pause_seconds=0.001)
    assert "refused" in caplog.text


def test_the_address_stands_in_the_environment_alone(monkeypatch, caplog):
    monkeypatch.delenv("TEAM_WEBHOOK")
    assert not send("TEAM_WEBHOOK", MESSAGE)
    assert "TEAM_WEBHOOK of monitoring.alerts.webhook is not set" in caplog.text
    assert AlertsConfig(webhook="TEAM_WEBHOOK").webhook == "TEAM_WEBHOOK"
    with pytest.raises(ConfigError, match="webhook: expected the name of an environment variable") as told:
        parse(AlertsConfig, {"webhook": "https://hooks.example.com/services/T0/secret"})
    assert "T0" not in str(told.value)


@pytest.mark.parametrize("address", ["file:///etc/passwd", "ftp://a/b", "http:///x"])
def test_only_the_web_is_written_to(address, monkeypatch, caplog):
    monkeypatch.setenv("TEAM_WEBHOOK", address)
    assert not send("TEAM_WEBHOOK", MESSAGE)
    assert "holds no http or https address" in caplog.text
