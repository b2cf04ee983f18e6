"""What a recipe says in the words of Kubernetes, held against what Kubernetes takes (its validation of labels, names
and quantities, in apimachinery): no compiler tells what it refuses, but a run that does not begin.

Sizes are written as Kubeflow Pipelines takes them, too: as whole numbers (kfp 2.17, `set_memory_limit`).
"""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, WithJsonSchema

CPU = r"([0-9]+(\.[0-9]+)?|[0-9]+m)"
MEMORY = r"[0-9]+(\.[0-9]+)?(k|Ki|M|Mi|G|Gi|T|Ti)?"
BYTES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
"""What a unit of memory stands for."""
LEAST = 2**20
"""Bytes below which no process starts: who writes `memory: 4` means another unit."""
LETTERS = "expected up to 63 letters, digits, '-', '_' and '.', the first and the last none of these marks"
_NAME = r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_DNS = r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*"
_PATH = r"[a-z0-9]+((\.|_{1,2}|-+)[a-z0-9]+)*"
_TAG = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
_IMAGE = rf"([A-Za-z0-9.-]+(:[0-9]+)?/)?{_PATH}(/{_PATH})*(:{_TAG})?(@sha256:[0-9a-f]{{64}})?"


def cores(quantity: str) -> Decimal:
    """A quantity of CPU as a number."""
    return Decimal(quantity[:-1]) / 1000 if quantity.endswith("m") else Decimal(quantity)


def size(quantity: str) -> Decimal:
    """A quantity of memory in bytes."""
    value, unit = _parts(quantity)
    return Decimal(value) * BYTES[unit]


def times(quantity: str, number: int) -> str:
    """A quantity so many times, in its own unit: `64Gi` eight times is `512Gi`."""
    value, unit = _parts(quantity)
    return f"{Decimal(value) * number}{unit}"


def _parts(quantity: str) -> tuple[str, str]:
    """The number of a quantity, and its unit."""
    value = quantity.rstrip("".join(BYTES))
    return value, quantity.removeprefix(value)


def is_image(name: str) -> bool:
    """Whether it is the name of an image, as registries and Kubernetes take it."""
    return re.fullmatch(_IMAGE, name) is not None


def _cpu(quantity: str) -> str:
    if not re.fullmatch(CPU, quantity) or not cores(quantity):
        raise ValueError("expected cores above 0, such as 2, 0.5 or 500m")
    return quantity


def _memory(quantity: str) -> str:
    if not re.fullmatch(MEMORY, quantity) or size(quantity) < LEAST:
        raise ValueError("expected 1Mi or more, such as 4Gi, 500M or 4000000000, which are bytes")
    value, unit = _parts(quantity)
    return quantity if value.isdigit() and unit != "k" else f"{math.ceil(size(quantity))}"


def _key(name: str) -> str:
    prefix, slash, own = name.rpartition("/")
    if not re.fullmatch(_NAME, own) or (slash and not _is_dns(prefix)):
        raise ValueError(f"{LETTERS}; before them may stand a domain and '/', such as kueue.x-k8s.io/queue-name")
    return name


def _value(value: str) -> str:
    if value and not re.fullmatch(_NAME, value):
        raise ValueError(LETTERS)
    return value


def _resource(name: str) -> str:
    prefix, _, own = name.rpartition("/")
    if not _is_dns(prefix) or not re.fullmatch(_NAME, own):
        raise ValueError("expected the resource of a device plugin, such as nvidia.com/gpu or amd.com/gpu")
    return name


def _object(name: str) -> str:
    if not _is_dns(name):
        raise ValueError("expected the name of an object: small letters, digits, '-' and '.'")
    return name


def _image(name: str) -> str:
    if not is_image(name):
        raise ValueError("expected the name of an image, such as registry.example.com/bloomery-cpu:0.1.0")
    return name


def _is_dns(name: str) -> bool:
    return len(name) <= 253 and re.fullmatch(_DNS, name) is not None


def _quantity(value: Any) -> Any:
    return str(value) if type(value) in (int, float) else value


def _schema(pattern: str) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [{"type": "string", "pattern": f"^{pattern}$"}, {"type": "number", "minimum": 0}]})


Cpu = Annotated[str, BeforeValidator(_quantity), AfterValidator(_cpu), _schema(CPU)]
"""Cores, also written as a number: `cpu: 8`."""
Memory = Annotated[str, BeforeValidator(_quantity), AfterValidator(_memory), _schema(MEMORY)]
"""Bytes, also written as a number; what Kubeflow Pipelines does not take becomes plain bytes: `1.5Gi`, `500k`."""
Key = Annotated[str, AfterValidator(_key)]
"""Of a label, and of a taint."""
Labels = dict[Key, Annotated[str, AfterValidator(_value)]]
ResourceName = Annotated[str, AfterValidator(_resource)]
"""What a device plugin calls its devices."""
ObjectName = Annotated[str, AfterValidator(_object)]
ImageName = Annotated[str, AfterValidator(_image)]
