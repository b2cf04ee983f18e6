"""What a run shows while it goes on."""

import sys

from bloomery.pipelines.progress import Live


def test_the_live_table_follows_the_journal_and_leaves_stdout_alone(capfd):
    stdout = sys.stdout
    live = Live(("preflight", "sft"))
    assert sys.stdout is stdout  # what steps print must go where the launcher sends it
    live({"event": "started", "stage": "preflight", "time": 1.0})
    done = {"event": "finished", "stage": "preflight", "time": 2.0, "cached": False, "seconds": 1.0}
    live({**done, "metrics": {"preflight/files": 2.0}})
    live({"event": "started", "stage": "sft", "time": 2.0})
    metrics = {"loss": 0.5, "tokens_per_second": 900.0, "num_steps": 40.0}
    live({"event": "progress", "stage": "sft", "time": 12.0, "step": 10, "metrics": metrics})
    live.close()
    table = capfd.readouterr().err.split("stage")[-1]
    assert "done" in table and "files 2" in table
    assert "loss 0.500, 900 tokens/s, 10/40, 30 s left" in table
