"""Many promotions at once, and deaths in the middle of one: on SQLite, on PostgreSQL and over HTTP."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import mlflow
import pytest

from bloomery.components.core.errors import GateError
from bloomery.components.core.registry import mlflow_client, registry, succession

NAME = "shop"
RACERS = 20
WRITES = ("create_registered_model", "set_registered_model_alias")


@pytest.fixture
def at(monkeypatch):
    """Point the registry at a URI."""

    def go(uri):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        mlflow.set_tracking_uri(uri)
        return uri

    yield go
    mlflow.set_tracking_uri(None)


@pytest.fixture(scope="module")
def postgres(postgres_server):
    return postgres_server.get_uri(driver="psycopg2")


@pytest.fixture(scope="module")
def sqlite(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('sqlite') / 'mlflow.db'}"


class Server:
    """A real `mlflow server` over a SQLite file, in processes of its own."""

    def __init__(self, folder):
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process = None

    def start(self):
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(self.port), "--workers", "2"]
        command += ["--backend-store-uri", f"sqlite:///{self.folder / 'mlflow.db'}", "--disable-security-middleware"]
        with (self.folder / "server.log").open("ab") as log:
            env = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
            env["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # processes for what is not asked here
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, env=env, cwd=self.folder
            )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=5)
                return
            except OSError:
                time.sleep(0.2)
        raise AssertionError((self.folder / "server.log").read_text())

    def kill(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    started = Server(tmp_path_factory.mktemp("server"))
    started.start()
    yield started
    started.kill()


def race(pool, rounds, name=NAME):
    """Several rounds in which all racers promote their own version against one champion."""
    expected = None
    for number in range(rounds):
        sources = [f"s3://models/{number}-{racer}" for racer in range(RACERS)]
        made = list(pool.map(registry.register, [name] * RACERS, sources, [{}] * RACERS))
        assert len(set(made)) == RACERS
        running = [
            pool.submit(registry.promote, name, version, expected_champion=expected, why=f"racer {version}")
            for version in made
        ]
        ended = {version: future.exception() for version, future in zip(made, running, strict=True)}
        winners = [version for version, error in ended.items() if error is None]
        losers = [error for error in ended.values() if error is not None]
        assert len(winners) == 1 and all(isinstance(error, GateError) for error in losers), losers
        assert all(f"racer {winners[0]}): evaluate again" in str(error) for error in losers)
        model = mlflow_client.connect().get_registered_model(name)
        pointing = {key: str(version) for key, version in model.aliases.items()}
        previous = {"previous": expected} if expected else {}
        assert pointing == {"champion": winners[0], "candidate": winners[0], **previous}
        expected = winners[0]
    assert [change["to"] for change in registry.audit(name)][0] == expected
    assert len(registry.audit(name)) == rounds
    assert {entry["name"] for entry in registry.versions()} <= {NAME, name}  # and no record


def processes(uri):
    context = multiprocessing.get_context("forkserver")
    # Imported once: each of the twenty would otherwise import MLflow for itself.
    context.set_forkserver_preload(
        ["bloomery.components.core.registry.registry", "mlflow.store.model_registry.rest_store"]
    )
    return ProcessPoolExecutor(RACERS, mp_context=context, initializer=mlflow.set_tracking_uri, initargs=(uri,))


def test_of_twenty_processes_one_wins_each_round_on_sqlite(at, sqlite):
    at(sqlite)
    assert registry.versions() == []
    with processes(sqlite) as pool:
        list(pool.map(time.sleep, [0.2] * RACERS))
        race(pool, rounds=2)


def test_of_twenty_connections_one_wins_each_round_on_postgresql(at, postgres, monkeypatch):
    monkeypatch.setenv("MLFLOW_SQLALCHEMYSTORE_POOL_SIZE", str(2 * RACERS))  # MLflow opens a second one in a conflict
    at(postgres)
    assert registry.versions() == []
    with ThreadPoolExecutor(RACERS) as pool:
        race(pool, rounds=3)


class Died(BaseException):
    """The process that promotes ends here."""


class Mortal:
    """The real client, which dies before or after a given write; `die` says how."""

    def __init__(self, client, fatal_write, after, die):
        self.client, self.fatal_write, self.after, self.die, self.writes = client, fatal_write, after, die, 0

    def __getattr__(self, name):
        method = getattr(self.client, name)
        if name not in WRITES:
            return method

        def write(*arguments, **named):
            self.writes += 1
            if self.writes == self.fatal_write and not self.after:
                self.die()
            answer = method(*arguments, **named)
            if self.writes == self.fatal_write and self.after:
                self.die()
            return answer

        return write


def promote_and_die(monkeypatch, name, fatal_write, after, die):
    client = Mortal(mlflow_client.connect(), fatal_write, after, die)
    with monkeypatch.context() as patched:
        patched.setattr(succession, "connect", lambda: client)
        registry.promote(name, "2", expected_champion="1", why="the one that dies")


def check_one_champion_then_settle(name, expected_champion):
    """Whoever died, there is one champion, and the next change leaves aliases and record agreed."""
    assert registry.champion(name) == expected_champion
    assert str(registry.alias(name, registry.CHAMPION).version) == expected_champion
    assert str(mlflow_client.connect().get_registered_model(name).aliases["champion"]) in ("1", expected_champion)
    registry.promote(name, "3", expected_champion=expected_champion, why="the next one")
    aliases = mlflow_client.connect().get_registered_model(name).aliases
    assert {key: str(version) for key, version in aliases.items()} == {
        "champion": "3",
        "candidate": "3",
        "previous": expected_champion,
    }


def three_versions_of_which_one_is_champion(name):
    for number in (1, 2, 3):
        registry.register(name, f"s3://models/{number}", {})
    registry.promote(name, "1", expected_champion=None, why="the first one")


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("fatal_write", [1, 2, 3, 4])
def test_a_process_that_dies_at_any_write_leaves_one_champion(at, sqlite, monkeypatch, fatal_write, after):
    def die():
        raise Died

    at(sqlite)
    name = f"mortal-{fatal_write}-{after}"
    three_versions_of_which_one_is_champion(name)
    with pytest.raises(Died):
        promote_and_die(monkeypatch, name, fatal_write, after, die)
    check_one_champion_then_settle(name, "1" if (fatal_write, after) == (1, False) else "2")


def test_a_server_that_is_killed_between_record_and_aliases_leaves_one_champion(at, server, monkeypatch):
    at(server.uri)
    three_versions_of_which_one_is_champion(NAME)
    promote_and_die(monkeypatch, NAME, 1, True, server.kill)  # the change was made, so this is no error
    server.start()
    check_one_champion_then_settle(NAME, "2")


def test_of_twenty_clients_one_wins_each_round_over_http(at, server):
    at(server.uri)
    with ThreadPoolExecutor(RACERS) as pool:
        race(pool, rounds=2, name="raced")
