"""Rows from outside: files, formats and the metrics over texts."""
