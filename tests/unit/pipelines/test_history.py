"""What `bloomery show` tells of a run."""

from bloomery.components.core import artifact
from bloomery.pipelines.history import describe


def test_the_adapters_of_a_run_are_told_with_their_folders(make_run, tmp_path):
    made = make_run(tmp_path / "run")
    for stage, adapter in (("sft", {"kind": "lora"}), ("start", None)):  # the start may bring that of an earlier run
        folder = made.path(stage, "model")
        (folder / "adapter").mkdir(parents=True)
        with artifact.lineage(stage, {"adapter": adapter}, {}):
            artifact.seal(folder, "model/1")
        made.finish(stage, {"model": folder}, {f"{stage}/loss": 0.5})
    known = {"status": "promoted", "reason": "all 3 legs passed", "seconds": 1.0, "report": "r.html"}
    told = describe({**known, "stages": {"sft": {"sft/loss": 0.5}}, "cached_steps": [], "run": str(made.folder)})
    assert told.split("\n")[2:5] == [f"adapter of sft: {made.path('sft', 'model') / 'adapter'}", "", "sft"]
