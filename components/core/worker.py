"""One of the processes that `processes.launch` starts, each of which runs the same step: `python -m … FOLDER`.

The first tells and writes what the step does; the others keep silent, and what they write is thrown away.
"""

from __future__ import annotations

import os
import pickle
import sys
import threading
import time
import traceback
from pathlib import Path

from bloomery.components.core import processes, unfinished
from bloomery.components.core.errors import BloomeryError
from bloomery.components.core.step import configure_logging, perform


def main(folder: Path) -> None:
    """Run the step that `folder` holds, and leave its result or its error there."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    (run, stage, settings, inputs, outputs, digests), place = pickle.loads((folder / processes.WORK).read_bytes())
    rank = processes.rank()
    configure_logging("ERROR" if rank else None)
    if rank:
        for place_to_tell in ("BLOOMERY_JOURNAL", "MLFLOW_TRACKING_URI"):
            os.environ.pop(place_to_tell, None)
        outputs = {port: folder / f"{rank}" / port for port in outputs}
    try:
        _take_device()
        with unfinished.lying_in(place):
            result = perform(run, stage, settings, inputs, outputs, digests)
    except Exception as error:
        told = error if isinstance(error, BloomeryError) else RuntimeError(traceback.format_exc())
        (folder / f"{processes.ERROR}.{rank}").write_bytes(pickle.dumps(told))
        sys.exit(error.exit_code if isinstance(error, BloomeryError) else 1)
    if not rank:
        (folder / processes.RESULT).write_bytes(pickle.dumps(result))


def _end_with(parent: int) -> None:
    """End at once when the process that started this one is no more: it may have been killed."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _take_device() -> None:
    """The accelerator of this process, or its share of the cores."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(processes.local_rank())
    torch.set_num_threads(max(1, torch.get_num_threads() // processes.local_count()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
