"""Settings before they are validated: read from a file's YAML, and one value put into them by `--set a.b=value`."""

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


def mapping(text: str, where: str, of: str) -> dict[str, Any]:
    """What the YAML `text` of the file `where` maps keys to; `of` says what it ought to map. Raises: ConfigError."""
    try:
        values = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        told = str(error).replace('"<unicode string>"', where)[:300]
        raise ConfigError(f"{where}: not YAML: {told}") from None
    except RecursionError:
        raise ConfigError(f"{where}: not YAML: brackets within brackets, too many to be read") from None
    if not isinstance(values, dict):
        found = "nothing" if values is None else type(values).__name__
        raise ConfigError(f"{where}: found {found}, expected a mapping of {of}")
    return values


class _Loader(yaml.SafeLoader):
    """YAML in which a key stands once: of two the first would be lost in silence."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            told = str(key.value)
            if told in seen and told != "<<":
                raise yaml.composer.ComposerError(None, None, f"the key {told} stands here again", key.start_mark)
            seen.add(told)
        return node
