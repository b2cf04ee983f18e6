"""The line of champions on a real MLflow over SQLite."""

import itertools

import pytest

from bloomery.components.core.errors import ConfigError, GateError, ModelError
from bloomery.components.core.registry import mlflow_client, registry

names = (f"shop_{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('registry') / 'mlflow.db'}"


@pytest.fixture
def shop(database, monkeypatch):
    """A model of three versions, promoted one after the other."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    name, champion = next(names), None
    for number in ("1", "2", "3"):
        assert registry.register(name, f"/models/{name}/{number}", {"digest": number}) == number
        registry.promote(name, number, expected_champion=champion, why=f"version {number}")
        champion = number
    return name


def aliases(name):
    return {entry["version"]: entry["aliases"] for entry in registry.versions(name)}


def test_each_rollback_goes_one_further_back_and_is_audited(shop):
    assert aliases(shop) == {"3": ["candidate", "champion"], "2": ["previous"], "1": []}
    assert registry.rollback(shop, "wrong answers") == ("3", "2")
    assert registry.rollback(shop) == ("2", "1")
    assert aliases(shop) == {"3": ["candidate"], "2": [], "1": ["champion"]}
    with pytest.raises(GateError, match="no previous version"):
        registry.rollback(shop)
    told = [(change["kind"], change["from"], change["to"]) for change in registry.audit(shop)]
    assert told[:2] == [("rollback", "2", "1"), ("rollback", "3", "2")] and len(told) == 5
    assert registry.audit(shop)[1]["why"] == "wrong answers"


def test_a_stale_decision_is_refused_and_told_who_was_first(shop):
    with pytest.raises(GateError, match=r"the champion is version 3.*taken against 2.*promote by .*: version 3"):
        registry.promote(shop, "1", expected_champion="2", why="late")
    assert len(registry.audit(shop)) == 3
    registry.promote(shop, "3", expected_champion="2", why="an attempt that lost its answer")
    assert len(registry.audit(shop)) == 3


def test_an_alias_that_was_moved_past_the_record_is_put_back_by_the_next_change(shop):
    mlflow_client.connect().set_registered_model_alias(shop, "champion", "1")
    assert str(registry.alias(shop, registry.CHAMPION).version) == "3"
    registry.promote(shop, "2", expected_champion="3", why="by hand", kind="manual")
    assert str(mlflow_client.connect().get_model_version_by_alias(shop, "champion").version) == "2"


def test_aliases_that_were_moved_or_deleted_by_hand_are_told(shop):
    client = mlflow_client.connect()
    assert registry.differences(shop) == "" and registry.versions(shop)[0]["differs"] == ""
    client.set_registered_model_alias(shop, "champion", "1")
    client.delete_registered_model_alias(shop, "candidate")
    told = registry.differences(shop)
    assert "the alias champion is 1, in the record it is 3" in told and "version 3)" in told
    assert "the alias candidate is none, in the record it is 3" in told and "previous" not in told
    assert {entry["differs"] for entry in registry.versions(shop)} == {told}
    registry.promote(shop, "3", expected_champion="3", why="as it was")
    assert registry.differences(shop) == ""
    # A version that was deleted took its alias along.
    client.delete_model_version(shop, "2")
    assert registry.differences(shop) == ""
    client.set_registered_model_alias(shop, "previous", "1")
    assert "the alias previous is 1, in the record it is 2" in registry.differences(shop)


def test_a_deleted_champion_is_told_and_passed_over_by_a_rollback(shop):
    mlflow_client.connect().delete_model_version(shop, "2")
    assert registry.rollback(shop) == ("3", "1")
    mlflow_client.connect().delete_model_version(shop, "1")
    with pytest.raises(ModelError, match="version 1, which was deleted"):
        registry.alias(shop, registry.CHAMPION)
    registry.promote(shop, "3", expected_champion=registry.champion(shop), why="back", kind="manual")
    assert str(registry.alias(shop, registry.CHAMPION).version) == "3"


def test_records_say_nothing_of_a_model_that_was_deleted_and_made_again(shop):
    mlflow_client.connect().delete_registered_model(shop)
    assert registry.champion(shop) is None and registry.alias(shop, registry.CHAMPION) is None
    assert registry.register(shop, "/models/again", {}) == "1"
    registry.promote(shop, "1", expected_champion=None, why="again")
    assert registry.champion(shop) == "1" and registry.audit(shop)[0]["number"] == "4"


def test_aliases_of_before_there_were_records_are_where_they_begin(database, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    name = next(names)
    for number in ("1", "2"):
        registry.register(name, f"/models/{name}/{number}", {})
    mlflow_client.connect().set_registered_model_alias(name, "champion", "1")
    assert registry.champion(name) == "1"
    registry.promote(name, "2", expected_champion="1", why="first record")
    assert registry.rollback(name) == ("2", "1")


def test_a_version_is_registered_once_and_shown_by_number_or_alias(shop):
    source = f"/models/{shop}/3"
    assert registry.register(shop, source, {"digest": "new"}, "the card") == "3"
    assert registry.card(shop, "champion") == registry.card(shop, "3") == "the card"
    with pytest.raises(ConfigError, match="no version 9"):
        registry.card(shop, "9")


def test_an_unknown_model_has_no_champion(database, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    assert registry.alias("nobody", registry.CHAMPION) is None and registry.versions("nobody") == []
    with pytest.raises(GateError, match="no champion"):
        registry.rollback("nobody")
