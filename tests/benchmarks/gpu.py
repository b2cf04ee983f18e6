"""How near training on a GPU comes to what the card can do: `make bench-gpu`, on a machine that has one.

    python tests/benchmarks/gpu.py [--tiny] [ARM …]

A Llama of 1.24 billion random weights (the shape of Llama 3.2 1B) is trained as sft trains it, in bfloat16, on packed
rows of 2,048 tokens: `full`, `lora` and `qlora`, each in a process of its own. Writes gpu.json: tokens a second of the
middle step, `utilisation` (the operations of `plan.flops`, without those that checkpointing repeats, a second, as a
part of the card's peak: cards.py), and the most memory that torch had allocated and reserved, and that the driver
counted for the process, beside what `bloomery plan` says. `--tiny` trains next to nothing, on a CPU as well, to see
that all of it runs, and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from surrounding import surrounding  # noqa: E402
from train import llama, ours, random_rows  # noqa: E402

from bloomery.components.core.modelling import cards, plan, shapes  # noqa: E402
from bloomery.components.core.modelling.fine_tuning import FineTuningConfig  # noqa: E402

FILE = Path(__file__).with_suffix(".json")
SHAPE = {
    "hidden_size": 2_048,
    "intermediate_size": 8_192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
"""Llama 3.2 1B's."""
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
ARMS: dict[str, dict[str, Any]] = {
    "full": {"batch_size": 8},
    "full, checkpointing": {"batch_size": 16, "gradient_checkpointing": True},
    "lora": {"batch_size": 8, "adapter": {"kind": "lora", "rank": 16}},
    "qlora": {"batch_size": 8, "adapter": {"kind": "qlora", "rank": 16}},
}
STEPS = 12


def config_of(arm: str, length: int) -> FineTuningConfig:
    """The settings of an arm."""
    fixed = {"learning_rate": 1e-5, "epochs": 1, "packing": True, "num_validations": 0}
    if "adapter" not in ARMS[arm]:
        fixed["precision"] = "bf16"
    return FineTuningConfig.model_validate({**fixed, "max_length": length, **ARMS[arm]})


def measured(arm: str, *, tiny: bool) -> dict[str, Any]:
    """Train one arm in this process."""
    import torch

    length, vocabulary = (128, 2_048) if tiny else (2_048, 128_256)
    config = config_of(arm, length)
    with tempfile.TemporaryDirectory() as name:
        model = llama(Path(name) / "model", vocabulary, **(TINY if tiny else SHAPE))
        in_16_bits(model)
        rows = random_rows(int(1.6 * STEPS * config.batch_size) * (1 if tiny else 4), vocabulary, length // 2)
        trainer, seconds, passes = ours(model, rows, config)
        tokens = sum(len(row["input_ids"]) for batch in passes for row in batch) / trainer.state.global_step
        card, shape = cards.here(), shapes.read(model)
        training = plan.Training.of(config)
        planned = plan.of_training(shape, training, card)
    useful = plan.flops(shape, training.model_copy(update={"checkpointing": False}), tokens)
    found = {
        "card": card.name,
        "steps": trainer.state.global_step,
        "tokens_per_step": round(tokens),
        "tokens_per_second": round(tokens / seconds),
        "utilisation": round(useful / seconds / card.flops, 3) if card.flops else None,
        "planned_bytes": round(planned.peak),
        "planned_parts": {part: round(size) for part, size in planned.parts.items()},
    }
    if torch.cuda.is_available():
        found["allocated_bytes"] = torch.cuda.max_memory_allocated()
        found["reserved_bytes"] = torch.cuda.max_memory_reserved()
        free, whole = torch.cuda.mem_get_info()
        found["used_bytes"] = whole - free  # context and kernels among it
    return found


def in_16_bits(folder: Path) -> None:
    """Store the weights of a checkpoint as published ones are."""
    import torch
    from safetensors.torch import load_file, save_file

    (file,) = folder.glob("*.safetensors")
    save_file({name: own.to(torch.bfloat16) for name, own in load_file(file).items()}, file, metadata={"format": "pt"})
    told = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**told, "dtype": "bfloat16"}), encoding="utf-8")


def main() -> None:
    """Measure the arms, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arms", nargs="*", metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--tiny", action="store_true", help="train next to nothing and write nothing")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if unknown := sorted(set(given.arms) - set(ARMS)):
        parser.error(f"no arm {', '.join(unknown)}; known: {', '.join(ARMS)}")
    if given.here:
        print(json.dumps(measured(given.arms[0], tiny=given.tiny)))
        return
    found = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    for arm in given.arms or ARMS:
        command = [sys.executable, __file__, "--here", *(["--tiny"] if given.tiny else []), arm]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found[arm] = {**json.loads(done.stdout.splitlines()[-1]), **surrounding()}
        print(arm, json.dumps(found[arm]), flush=True)
        if not given.tiny:
            FILE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
