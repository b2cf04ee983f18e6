"""What every step shares; imports neither kfp nor torch at import time."""
