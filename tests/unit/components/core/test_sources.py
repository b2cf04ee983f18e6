"""Which files the digest of a step outside the tree covers."""

from pathlib import Path

import pytest

import bloomery.components
from bloomery.components.core import sources

FILES = {
    "step.py": "from .parts.scaling import scaled\nfrom . import words\ndef run(): ...",
    "words.py": "",
    "parts/__init__.py": "from .. import __name__",
    "parts/scaling.py": "def scaled():\n    from ...core import parallel",
    "parts/table.csv": "1,2",
    "component.py": "",
    "README.md": "",
    ".hidden": "",
    "__pycache__/step.cpython-311.pyc": "",
}


@pytest.fixture
def step(tmp_path):
    for name, text in FILES.items():
        file = tmp_path / "tripling" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    bloomery.components.__path__.append(str(tmp_path))  # as BLOOMERY_STEPS does
    yield tmp_path / "tripling"
    bloomery.components.__path__.remove(str(tmp_path))


def test_all_of_its_folder_and_what_it_imports_by_relative_names(step):
    found = sources.files_of("bloomery.components.tripling.step")
    own = {file.relative_to(step).as_posix() for file in found if file.is_relative_to(step)}
    assert own == {"step.py", "words.py", "parts/__init__.py", "parts/scaling.py", "parts/table.csv"}
    core = Path(sources.__file__).parent
    assert {core / "__init__.py", core / "parallel.py", core / "errors.py", core.parent / "__init__.py"} <= set(found)
    assert len(found) == len(set(found)) and core / "store.py" not in found
