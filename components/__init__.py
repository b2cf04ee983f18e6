"""The steps of the pipeline, one folder each, and what they share in `core`."""

if __name__ == "components":
    raise ImportError("import bloomery.components: the bare name 'components' is not ours to take")
