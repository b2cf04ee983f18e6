"""Sample, verify, keep."""
