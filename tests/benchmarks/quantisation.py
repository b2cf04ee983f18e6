"""What each scheme saves and costs: `python tests/benchmarks/quantisation.py [MODEL TASKS CHATS]`.

On a random Llama of 95 M parameters in bfloat16 (sizes, memory and latencies), and on the trained checkpoint MODEL with
its tasks/1 and chat/2 artifacts, as a run's journal names them (quality, too). Writes quantisation.json beside itself;
the exit code is 1 if int8 saves less than 1.9 times or int4 less than 3.3 times of 16 bits on the large model, with
embeddings counted, or if the chosen variant of the trained model loses more than a point.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

from bloomery.components.core import artifact
from bloomery.components.core.data.chats import chat
from bloomery.components.core.modelling import checkpoints
from bloomery.components.core.records import Prompt, content_id
from bloomery.components.core.scoring.statistics import Z95
from bloomery.components.ptq.config import PtqConfig
from bloomery.components.ptq.step import run as ptq
from bloomery.components.quantisation.config import QatConfig, QuantisationConfig
from bloomery.components.quantisation.step import run as quantisation
from bloomery.infra import surroundings

TRAINED = (
    "int8_weight_only",
    "int8_dynamic_activation",
    "float8_weight_only",
    "int4_weight_only",
    "mixed_int4",
    "bitsandbytes_nf4",
    "bitsandbytes_int8",
    "gptq_int4",
    "awq_int4",
    "smoothquant_int8",
    "fp8_dynamic",
    "gguf_q8_0",
    "gguf_q4_0",
    "gguf_q6_k",
    "gguf_q4_k_m",
)
EIGHT_BIT_CACHE = ("none", "int8_weight_only")
QAT = {"optimizer": "muon", "learning_rate": 2e-4, "batch_size": 16, "max_length": 192}
RANDOM = ("int8_weight_only", "float8_weight_only", "int4_weight_only")
INT8, INT4, DROP = 1.9, 3.3, 0.01
KEPT = (
    "scheme",
    "bytes",
    "weight_bytes",
    "memory_bytes",
    "prefill_seconds",
    "decode_seconds_per_token",
    "kv_cache_bytes_per_token",
    "score",
    "stderr",
    "n",
    "difference",
    "difference_stderr",
    "perplexity",
    "agreement",
    "chosen",
    "refused",
    "skipped",
)


def main() -> int:
    """Measure both models and write the numbers; returns the exit code."""
    found: dict[str, Any] = {"machine": f"{platform.machine()}, {os.cpu_count()} cores"}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        found["random_95m"] = table(*random_model(work / "random"), plain(RANDOM), work / "r")
        if len(sys.argv) > 1:
            cached = [QuantisationConfig(scheme=scheme, kv_cache_bits=8) for scheme in EIGHT_BIT_CACHE]
            trained = QuantisationConfig(scheme="int4_weight_only", qat=QatConfig.model_validate(QAT))
            found["trained"] = table(*map(Path, sys.argv[1:4]), [*plain(TRAINED), *cached, trained], work / "t")
    target = Path(__file__).with_suffix(".json")
    target.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    ratios = {row["scheme"]: row["ratio_to_16_bits"] for row in found["random_95m"] if not row["skipped"]}
    faults = [
        f"{scheme}: {ratio:.2f} times smaller than 16 bits, expected {wanted}"
        for scheme, ratio in ratios.items()
        for start, wanted in (("int8", INT8), ("int4", INT4))
        if scheme.startswith(start) and ratio < wanted
    ]
    for row in found.get("trained", []):
        if row["chosen"]:
            half = Z95 * row["difference_stderr"]
            print(f"chosen {row['scheme']}: {100 * row['difference']:+.1f} ± {100 * half:.1f} points, n = {row['n']}")
            faults += [f"the chosen {row['scheme']} loses more than a point"] * (row["difference"] < -DROP)
    for row in (*found["random_95m"], *found.get("trained", [])):
        print({name: value for name, value in row.items() if value is not None})
    print("\n".join(faults), file=sys.stderr)
    return int(bool(faults))


def plain(schemes: tuple[str, ...]) -> list[QuantisationConfig]:
    """Each scheme with its own settings, and the cache as it is."""
    return [QuantisationConfig(scheme=scheme) for scheme in schemes]


def table(
    model: Path, tasks: Path, chats: Path, variants: list[QuantisationConfig], work: Path
) -> list[dict[str, Any]]:
    """The entries of variants.json, each with its size and latencies as ratios to those of the model in 16 bits."""
    folders = []
    for config in (QuantisationConfig(scheme="none"), *variants):
        model_to, measured = work / config.name / "model", work / config.name / "measurement"
        quantisation(config, base_model=model, tasks=tasks, chats=chats, model=model_to, measurement=measured)
        folders.append((model_to, measured))
    ptq(
        PtqConfig(),
        models=[m for m, _ in folders],
        measurements=[m for _, m in folders],
        model=work / "chosen",
        variants=work / "variants",
    )
    rows = json.loads((work / "variants" / "variants.json").read_text())
    parent, in_16_bits = rows[0], 2 * num_parameters(model)
    found = []
    for row in rows:
        ratios = (
            {}
            if row["skipped"]
            else {
                "ratio_to_16_bits": in_16_bits / row["bytes"],
                "prefill_ratio": row["prefill_seconds"] / parent["prefill_seconds"],
                "decode_ratio": row["decode_seconds_per_token"] / parent["decode_seconds_per_token"],
            }
        )
        found.append({name: row[name] for name in KEPT} | ratios)
    return found


def num_parameters(model: Path) -> int:
    """Parameters of a checkpoint, tied ones once."""
    from transformers import AutoModelForCausalLM

    return sum(parameter.numel() for parameter in AutoModelForCausalLM.from_pretrained(model).parameters())


def random_model(folder: Path) -> tuple[Path, Path, Path]:
    """(model, tasks, chats): an untrained Llama of 95 M parameters with a byte-level tokenizer and four questions."""
    import torch
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers import models as tokenizer_models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from bloomery.components.core.records import Chat

    special = ["<|pad|>", "<|eos|>", "<|user|>", "<|assistant|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(tokenizer_models.BPE(vocab={c: i for i, c in enumerate(special + alphabet)}, merges=[]))
    tokenizer.add_special_tokens(special)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    template = (
        "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|eos|>", chat_template=template
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=10,
        num_attention_heads=12,
        num_key_value_heads=12,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
    )
    checkpoints.save(folder / "model", LlamaForCausalLM(config).to(torch.bfloat16), fast)
    tasks = folder / "tasks"
    tasks.mkdir()
    echo = {"role": "domain", "splits": {}, "verifier": {"kind": "exact"}, "max_new_tokens": 8}
    (tasks / "tasks.json").write_text(json.dumps({"echo": echo}))
    rows = [
        {
            "id": content_id("echo", f"{'word ' * 4}{i}", str(i)),
            "task": "echo",
            "split": "validation",
            "group": "",
            "messages": chat(f"{'word ' * 4}{i}"),
            "tools": "",
            "reference": str(i),
        }
        for i in range(4)
    ]
    artifact.write_rows(tasks, "prompt/2", Prompt.table(rows))
    artifact.seal(tasks, "tasks/1", rows=len(rows))
    artifact.write_rows(folder / "chats", "chat/2", Chat.table([]))
    return folder / "model", tasks, folder / "chats"


if __name__ == "__main__":
    surroundings.enter()
    sys.exit(main())
