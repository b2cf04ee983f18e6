import pytest

from bloomery.components.core.errors import ConfigError
from bloomery.pipelines import keys


def test_a_key_is_used_once_and_names_its_run(tmp_path):
    keys.claim(tmp_path, "nightly.1", "run-a")
    with pytest.raises(ConfigError, match="the run run-a has used it"):
        keys.claim(tmp_path, "nightly.1", "run-b")
    assert keys.run_of(tmp_path, "nightly.1") == "run-a"
    assert [file.name for file in (tmp_path / "keys").iterdir()] == ["nightly.1"]


@pytest.mark.parametrize("key", ["", ".hidden", "a/b", "../x", "a b", "-x", "k" * 201, "키"])
def test_a_key_can_name_a_file(tmp_path, key):
    with pytest.raises(ConfigError, match="--key"):
        keys.claim(tmp_path, key, "run")
