"""One model on every task of the recipe."""
