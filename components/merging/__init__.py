"""Models merged, stacked and extended without training."""
