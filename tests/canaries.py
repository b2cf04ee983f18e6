"""Secrets where users keep them, and the search for them in all that is written."""

from __future__ import annotations

from pathlib import Path

CANARY = "c4narysecret"
"""What every planted secret holds, in small letters, as hosts are written."""
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": f"AKIA{CANARY}",
    "AWS_SECRET_ACCESS_KEY": f"aws/{CANARY}",
    "AWS_SESSION_TOKEN": f"session/{CANARY}",
    "HF_TOKEN": f"hf_{CANARY}",
    "OPENAI_API_KEY": f"sk-{CANARY}",
    "MLFLOW_TRACKING_USERNAME": f"user-{CANARY}",
    "MLFLOW_TRACKING_PASSWORD": f"mlflow-{CANARY}",
    "KFP_TOKEN": f"kfp-{CANARY}",
    "BLOOMERY_STUDIES": f"postgresql://studies:{CANARY}@127.0.0.1:9/studies",
    "TEAM_WEBHOOK": f"http://127.0.0.1:9/services/{CANARY}",
}


def leaks(folder: Path) -> list[str]:
    """The files under a folder that hold a planted secret, also inside compressed Parquet."""
    return [str(file) for file in folder.rglob("*") if file.is_file() and CANARY in _content(file).lower()]


def _content(file: Path) -> str:
    if file.suffix == ".parquet":
        import pyarrow.parquet as pq

        table = pq.read_table(file)
        return f"{table.schema.metadata} {table.to_pydict()}"
    return file.read_bytes().decode("utf-8", "ignore")
