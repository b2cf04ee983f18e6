"""The DAGs, the recipe that configures them, and the ways to run them."""

if __name__ == "pipelines":
    raise ImportError("import bloomery.pipelines: the bare name 'pipelines' is not ours to take")
