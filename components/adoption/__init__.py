"""Another model becomes the one that a chain goes on from."""
