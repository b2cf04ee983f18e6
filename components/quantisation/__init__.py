"""One quantised variant of a model: exported in the form it is served in, loaded again from disk and measured."""
