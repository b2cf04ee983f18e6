"""Models made smaller: layers, heads and channels taken out, or weights set to zero."""
