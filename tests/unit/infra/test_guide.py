"""What infra/README.md says to type does what it says, as far as that shows without a cluster."""

import json
import os
import subprocess
import sys
from pathlib import Path

from bloomery.infra import images

GUIDE = Path(__file__).resolve().parents[3] / "infra" / "README.md"


def test_the_shell_of_the_guide_compiles_with_the_images_and_the_pull_secret_of_the_cluster():
    """The commands of step 5, with a `kubectl` that answers from the settings of a private registry."""
    guide = GUIDE.read_text(encoding="utf-8")
    step = guide.split("**5. A run.**")[1].split("**6. A server**")[0]
    commands = [line.strip() for line in step.splitlines() if line.startswith(("    export ", "    setting()"))]
    told = {images.CPU: "r.example.com/cpu@sha256:1", images.GPU: "r.example.com/gpu@sha256:2", images.PULL_SECRET: "s"}
    answers = "".join(f"*.data.{name}*) printf %s {value};; " for name, value in told.items())
    shell = f"kubectl() {{ case \"$*\" in {answers} esac; }}; key() {{ :; }}\n" + "\n".join(commands)
    code = "import json; from bloomery.infra import images; print(json.dumps(images.passed_on()))"
    bare = {name: value for name, value in os.environ.items() if name not in told}
    found = subprocess.run(
        ["bash", "-c", f"{shell}\n{sys.executable} -c '{code}'"], capture_output=True, text=True, check=True, env=bare
    )
    assert json.loads(found.stdout) == told
