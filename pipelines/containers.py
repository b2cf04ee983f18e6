"""The tasks of a run on this machine as containers of a Docker engine, each in the image that its pod would get.

A container has the workdir, which it writes as the user who runs the recipe; what the recipe names on this machine, and
what was made or fetched once, to read; and no network unless one is asked for. Paths are the same inside.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bloomery.components
from bloomery.components.core import interpreter, provenance, store
from bloomery.components.core.errors import ConfigError, ServiceError, from_os_error
from bloomery.components.core.uploads import cache_folder
from bloomery.infra import images, secrets, settings, surroundings
from bloomery.pipelines import local_files, steps
from bloomery.pipelines.recipe import Recipe

logger = logging.getLogger(__name__)

NO_NETWORK = "none"
"""The network of containers that reach nothing, under the name that `docker run --network` has for it."""
LABEL = "bloomery.workdir"
"""Label of a container: the workdir of its run."""
OURS = ("BLOOMERY_", "MLFLOW_", "LOG_LEVEL", "TOKENIZERS_PARALLELISM")
"""What begins the names of variables that a task gets in a container as it does in a process."""


def check(recipe: Recipe, network: str) -> None:
    """See to what a run in containers needs, before it is begun.

    Raises: ServiceError where no engine answers, ConfigError for an image that it has not, and for a service that is
    named and that a container without network cannot reach.
    """
    for name in ("MLFLOW_TRACKING_URI", "BLOOMERY_STORE"):
        value = os.environ.get(name, "")
        if network == NO_NETWORK and "://" in value and not value.startswith(("sqlite:", "file:")):
            raise ConfigError(
                f"{name} names a service, and containers without network reach none; give --network host, or run "
                "without the variable"
            )
    here = provenance.commit()
    with _engine() as engine:
        for name in _images(recipe):
            built = _image(engine, name)["commit"]
            if here and built and not built.startswith(here):
                logger.warning("%s was built from commit %s, and here is %s: `make image` renews it", name, built, here)


@contextlib.contextmanager
def runner(recipe: Recipe, workdir: Path, network: str) -> Iterator[Any]:
    """kfp's runner of the tasks of `recipe`, whose results, runs and registry stand in the absolute `workdir`.

    Containers of the workdir that outlived an earlier run, or would outlive this one, are ended.
    """
    from docker.types import DeviceRequest
    from kfp import local

    options: dict[str, Any] = {}
    if recipe.resources.accelerator is not None:
        options["device_requests"] = [DeviceRequest(count=-1, capabilities=[["gpu"]])]
        options["shm_size"] = f"{recipe.resources.shm_gib}g"
    with _engine() as engine:
        _end(engine, workdir)
        try:
            yield local.DockerRunner(
                user=_user(engine),
                network_mode=network,
                mounts=mounts(recipe, workdir, network),
                environment={"BLOOMERY_IMAGE": _image(engine, _images(recipe)[0])["told"], **environment(network)},
                labels={LABEL: str(workdir)},
                cap_drop=["ALL"],
                security_opt=["no-new-privileges"],
                **options,
            )
        finally:
            _end(engine, workdir)


def mounts(recipe: Recipe, workdir: Path, network: str) -> list[Any]:
    """What containers see of this machine, as docker's bind mounts; folders that are written are made here, so that
    they are their user's."""
    from docker.types import Mount
    from huggingface_hub.constants import HF_HOME

    read = [*local_files.places(recipe), *_more_steps(), cache_folder()]
    written = [workdir]
    (read if network == NO_NETWORK else written).append(Path(HF_HOME))
    for place in (recipe.promotion.models_uri, store.named() or ""):
        if place and "://" not in place and not Path(place).absolute().is_relative_to(workdir):
            written.append(Path(place))
    for folder in written:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise from_os_error(error, f"making {folder}") from error
    only_read = {place.absolute(): True for place in read if place.exists()}
    only_read |= {place.absolute(): False for place in written}
    return [Mount(f"{place}", f"{place}", "bind", read_only=only) for place, only in sorted(only_read.items())]


def environment(network: str) -> dict[str, str]:
    """The variables of a container: our own; with a network, addresses and credentials too."""
    from huggingface_hub.constants import HF_HOME

    # As many threads as processes have here, and not as a pod would: so that both come to the same sums.
    names = {name for name in os.environ if name.startswith(OURS)} | set(surroundings.of(1))
    if network != NO_NETWORK:
        names |= {*secrets.KEYS, *settings.KEYS}.union(*(steps.find(name).secrets for name in steps.names()))
    names.discard(interpreter.PYTHON)  # a program of this machine
    given = {name: os.environ[name] for name in names if name in os.environ}
    # `~` in a recipe is the home of who wrote it.
    given |= {"HOME": str(Path.home()), "HF_HOME": HF_HOME, "BLOOMERY_CACHE": str(cache_folder().absolute())}
    if place := store.named():
        given["BLOOMERY_STORE"] = place if "://" in place else str(Path(place).absolute())
    if more := _more_steps():
        given["BLOOMERY_STEPS"] = os.pathsep.join(map(str, more))
    return given


def _more_steps() -> list[Path]:
    """The folders of steps that BLOOMERY_STEPS names."""
    return [Path(folder).absolute() for folder in list(bloomery.components.__path__)[1:]]


def _images(recipe: Recipe) -> list[str]:
    """The images of a recipe's tasks, that of those without an accelerator first."""
    resources = recipe.resources
    if resources.image is not None:
        return [resources.image]
    return [images.CPU_IMAGE] if resources.accelerator is None else [images.CPU_IMAGE, images.GPU_IMAGE]


def _image(engine: Any, name: str) -> dict[str, str]:
    """What the engine knows of an image: `told`, its name with its digest, of one that was in no registry its id; and
    the `commit` that it was built from, or ''. Raises: ConfigError where it has none."""
    from docker.errors import ImageNotFound

    try:
        found = engine.images.get(name)
    except ImageNotFound:
        raise ConfigError(
            f"the Docker engine has no image {name}; `make image` makes it, `docker pull {name}` fetches it, and "
            "BLOOMERY_IMAGE_CPU or resources.image names another"
        ) from None
    variables = dict(pair.split("=", 1) for pair in found.attrs["Config"]["Env"] or ())
    told = next(iter(found.attrs["RepoDigests"] or ()), f"{name} ({found.id})")
    return {"told": told, "commit": variables.get("BLOOMERY_COMMIT", "")}


def _engine() -> contextlib.closing[Any]:
    """The client of the engine that DOCKER_HOST names, else of this machine's. Raises: ServiceError."""
    import docker
    from docker.errors import DockerException

    try:
        return contextlib.closing(docker.from_env())
    except DockerException as error:
        where = os.environ.get("DOCKER_HOST", "its usual socket")
        raise ServiceError(
            f"no Docker engine answers at {where}: {str(error).split(chr(10))[0][:300]}; start it, see that you may "
            "use its socket, set DOCKER_HOST to its address, or run without --runner docker"
        ) from None


def _user(engine: Any) -> str:
    """Whom containers run as, so that what they write is the user's: an engine of its own (rootless) calls that one
    root."""
    is_own = "name=rootless" in (engine.info().get("SecurityOptions") or ())
    return "0:0" if is_own else f"{os.getuid()}:{os.getgid()}"


def _end(engine: Any, workdir: Path) -> None:
    """End the containers of a workdir."""
    from docker.errors import APIError

    for container in engine.containers.list(filters={"label": f"{LABEL}={workdir}"}):
        with contextlib.suppress(APIError):  # it may have just ended by itself
            container.kill()
