"""`--set a.b=value`: one value put into settings that are read but not yet validated."""

from __future__ import annotations

from typing import Any

import yaml

from bloomery.components.core.errors import ConfigError


def put(values: dict[str, Any], setting: str, *, told: str = "") -> None:
    """Put the YAML value of `a.b=value` into the nested `values`; `told` is what the user wrote, where that is more.

    Raises: ConfigError if it has another form."""
    told = told or setting
    key, separator, text = setting.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set {told}: expected stage.key=value, such as --set dpo.beta=0.2")
    *parents, last = key.split(".")
    place = values
    for parent in parents:
        place = place.setdefault(parent, {})
        if isinstance(place, list):
            raise ConfigError(
                f"--set {told}: '{parent}' is a list, which is set whole; a stage's settings are set by its name"
            )
        if not isinstance(place, dict):
            raise ConfigError(f"--set {told}: '{parent}' is no section")
    try:
        place[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {told}: the value is no YAML: {str(error)[:200]}") from None
