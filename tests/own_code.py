"""A small model whose architecture is code in its own repository, as `trust_remote_code` runs it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

RAN = "OWN_CODE_RAN"
"""Environment variable with a file that the code writes to when it is run."""
CODE = {
    "configuration_own.py": f"""
import os
from transformers import LlamaConfig

with open(os.environ.get("{RAN}", os.devnull), "a") as told:
    told.write("ran")


class OwnConfig(LlamaConfig):
    model_type = "own"
""",
    "gain_own.py": """
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm


class GainNorm(LlamaRMSNorm):
    def __init__(self, size, eps):
        super().__init__(size, eps)
        self.gain = torch.nn.Parameter(torch.ones(1))

    def forward(self, states):
        return super().forward(states) * self.gain
""",
    "modeling_own.py": """
from transformers import LlamaForCausalLM

from .configuration_own import OwnConfig
from .gain_own import GainNorm


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.model.norm = GainNorm(config.hidden_size, config.rms_norm_eps)
        self.post_init()
""",
}
AUTO_MAP = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}


def write_model(llama: Path, folder: Path) -> Path:
    """Write to `folder` the Llama of the folder `llama` as a model of its own code, in three files, that multiplies the
    last hidden states by 0.5."""
    import torch

    shutil.copytree(llama, folder, ignore=shutil.ignore_patterns("manifest.json"))
    for name, text in CODE.items():
        (folder / name).write_text(text)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "architectures": ["OwnForCausalLM"], "auto_map": AUTO_MAP}
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.gain"] = torch.tensor([0.5])
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder
