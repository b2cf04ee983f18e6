"""Where tasks run: images, resources, secrets, manifests."""

if __name__ == "infra":
    raise ImportError("import bloomery.infra: the bare name 'infra' is not ours to take")
