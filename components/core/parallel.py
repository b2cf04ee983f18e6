"""One function over many items, on every core of this machine or of a Ray cluster; results keep the order of the items.

Items are taken as workers become free, so that a stream of batches never stands in memory at once. What is computed
must not depend on who computes it: then any number of workers gives the same artifact.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from itertools import chain, islice
from typing import Any, TypeVar

from bloomery.components.core.errors import MissingExtraError, ServiceError

MIN_ITEMS = 16
"""Fewer items are worked off where they are: a worker process takes 2 s of CPU to import what a step needs."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ordered(
    function: Callable[[Item], Result], items: Iterable[Item], *, releases_gil: bool = False
) -> Iterator[Result]:
    """The results of `function` over `items`, in their order.

    Runs on the Ray cluster of `RAY_ADDRESS`, or where it is not set on the cores of this machine: in threads if the
    function `releases_gil` (compiled code), in processes otherwise. For processes and Ray the function, items and
    results must pickle.
    Raises: what `function` raises; MissingExtraError without the extra `ray`, ServiceError if no cluster answers.
    """
    if os.environ.get("RAY_ADDRESS"):
        yield from _on_ray(function, items)
        return
    items = iter(items)
    first = list(islice(items, MIN_ITEMS))
    if len(first) < MIN_ITEMS and not releases_gil:
        yield from map(function, first)
        return
    num_workers = num_cores()
    if releases_gil:
        with ThreadPoolExecutor(num_workers) as pool:
            yield from _in_turn(lambda item: pool.submit(function, item).result, chain(first, items), 2 * num_workers)
        return
    # A fork would copy the locks of Arrow's threads as they stand.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, context, initializer=_install, initargs=(function,)) as workers:
        yield from _in_turn(lambda item: workers.submit(_call, item).result, chain(first, items), 2 * num_workers)


_installed: Callable[[Any], Any]


def _install(function: Callable[[Any], Any]) -> None:
    """Keep the function in a worker process: its arguments, such as a trained model, travel once."""
    global _installed
    _installed = function


def _call(item: Any) -> Any:
    return _installed(item)


@functools.cache
def num_cores() -> int:
    """Cores that this process may use: those it is bound to, or the share of them that its container is given."""
    import joblib

    return joblib.cpu_count()


def _in_turn(
    submit: Callable[[Item], Callable[[], Result]], items: Iterable[Item], num_pending: int
) -> Iterator[Result]:
    pending: deque[Callable[[], Result]] = deque()
    for item in items:
        pending.append(submit(item))
        if len(pending) >= num_pending:
            yield pending.popleft()()
    while pending:
        yield pending.popleft()()


def _on_ray(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    ray = _ray()

    def call(item: Item) -> Result:
        return function(item)

    # A partial's arguments (an index of evaluation items) travel once, not with every item.
    remote = ray.remote(call)
    num_workers = int(ray.cluster_resources().get("CPU", 1))
    yield from _in_turn(lambda item: functools.partial(ray.get, remote.remote(item)), items, 2 * num_workers)


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise MissingExtraError("RAY_ADDRESS is set, but Ray is not installed: pip install 'bloomery[ray]'") from None
    if not ray.is_initialized():
        try:
            ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False, configure_logging=False)
        except (ConnectionError, OSError, RuntimeError) as error:
            raise ServiceError(f"Ray at {os.environ['RAY_ADDRESS']} does not answer: {str(error)[:300]}") from error
    return ray
