"""What every step shares; imports neither kfp nor torch at import time."""

import os

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
"""Read when huggingface_hub is imported. TRL's trainers report each training to the hub, from a thread; in a task that
was forked, its look-up of the host has ended the process by a segmentation fault."""
