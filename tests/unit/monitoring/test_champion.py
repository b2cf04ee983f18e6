"""The served champion beside a real MLflow over SQLite."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from bloomery.components.core.registry import mlflow_client, registry
from bloomery.monitoring.champion import Champion
from bloomery.monitoring.serving_config import ServingConfig


def test_an_alias_moved_by_hand_is_told_and_not_followed(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    for champion, version in ((None, "1"), ("1", "2")):
        (tmp_path / version).symlink_to(tiny_model)
        registry.register("shop", str(tmp_path / version), {})
        registry.promote("shop", version, expected_champion=champion, why="better")
    champion = Champion("shop", ServingConfig(poll_seconds=0.05))

    def problem(*, is_told: bool) -> str:
        deadline = time.monotonic() + 60
        while bool(champion.problem) != is_told and time.monotonic() < deadline:
            time.sleep(0.05)
        return champion.problem

    try:
        mlflow_client.connect().set_registered_model_alias("shop", "champion", "1")
        assert "the alias champion is 1, in the record it is 2" in problem(is_told=True)
        assert champion.served.version == "2"
        mlflow_client.connect().delete_registered_model_alias("shop", "champion")
        mlflow_client.connect().set_registered_model_alias("shop", "champion", "2")
        assert problem(is_told=False) == ""
    finally:
        champion.close()
