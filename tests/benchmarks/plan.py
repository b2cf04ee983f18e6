"""Peak memory of trainings as `plan` predicts it and as it is measured, each in a fresh process.

`python tests/benchmarks/plan.py [NAME …]` (`planned`: without training anew) trains a Llama of some 20 M parameters
with random weights for two steps of a row: full, with LoRA and with QLoRA, with gradient checkpointing and without, at
three lengths, and by dpo and reward_model, whose row is a pair; writes plan.json beside it.
The peak is the most memory that was resident (VmHWM) from the start of the process to the written checkpoint, as a
step has it, with glibc's settings of `infra/surroundings.py`; `imports` is the same after the imports alone, `nothing`
that of training a model of next to nothing.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from surrounding import surrounding

LENGTHS = (128, 512, 1024)
BATCH = 1
VOCABULARY = 8_192
TEMPLATE = (
    "{%- for message in messages -%}{%- if message['role'] == 'assistant' -%}<a>{% generation %}"
    "{{ message['content'] }}<eos>{% endgeneration %}{%- else -%}<u>{{ message['content'] }}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}<a>{%- endif -%}"
)


def combinations() -> dict[str, dict[str, Any]]:
    """The settings of each training, by its name."""
    found: dict[str, dict[str, Any]] = {}
    for length in LENGTHS:
        for adapter in (None, {"rank": 16}):
            for checkpointing in (False, True):
                name = f"{'lora' if adapter else 'full'}, {length} tokens{', checkpointing' if checkpointing else ''}"
                found[name] = {"max_length": length, "adapter": adapter, "gradient_checkpointing": checkpointing}
    for length in LENGTHS:
        found[f"qlora, {length} tokens"] = {"max_length": length, "adapter": {"kind": "qlora", "rank": 16}}
    found["qlora, 512 tokens, checkpointing"] = {**found["qlora, 512 tokens"], "gradient_checkpointing": True}
    found["full, 128 tokens, muon"] = {"max_length": 128, "optimizer": "muon"}
    found["full, 128 tokens, best kept"] = {"max_length": 128, "num_validations": 2}
    found["dpo, full, 128 tokens"] = {"max_length": 128, "loss": "sigmoid"}
    found["dpo, lora, 128 tokens"] = {"max_length": 128, "loss": "sigmoid", "adapter": {"rank": 16}}
    found["reward_model, full, 128 tokens"] = {"max_length": 128, "center": 0.01}
    found["reward_model, lora, 128 tokens"] = {"max_length": 128, "center": 0.01, "adapter": {"rank": 16}}
    return found


def make_model(folder: Path, hidden: int = 256, layers: int = 24) -> Path:
    """A Llama of the proportions of those that are in use, with grouped keys and values."""
    import torch
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from bloomery.components.core.modelling import checkpoints

    special = ["<pad>", "<eos>", "<u>", "<a>"]
    asked = ["What", "is", "this?", "An", "answer."]  # which templates are proven on
    words = special + asked + [f"w{number}" for number in range(VOCABULARY - len(special) - len(asked))]
    backend = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(special)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", chat_template=TEMPLATE
    )
    settings = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=11 * hidden // 4,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        tie_word_embeddings=True,
        max_position_embeddings=4_096,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    checkpoints.save(folder, LlamaForCausalLM(settings), tokenizer)
    return folder


def chats(count: int, length: int, seed: int) -> list[dict[str, Any]]:
    """Chats of `length` tokens, half of which are trained."""
    from bloomery.components.core.data.chats import chat

    chance = random.Random(seed)

    def text(words: int) -> str:
        return " ".join(f"w{chance.randrange(VOCABULARY - 9)}" for _ in range(words))

    half = length // 2
    return [{"messages": chat(text(half - 1), text(length - half - 2)), "tools": ""} for _ in range(count)]


def peak_bytes() -> int:
    """The most memory that was resident in this process, pages of mapped files among it. (A fork begins without the
    pages of libraries, and has read them again by the time that it trains.)"""
    told = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in told if line.startswith("VmHWM:"))


def import_all() -> None:
    """What a step that trains imports; nothing that starts threads, which no fork would have."""
    import peft  # noqa: F401
    import trl.trainer.dpo_trainer
    import trl.trainer.reward_trainer
    import trl.trainer.sft_trainer  # noqa: F401

    import bloomery.components.dpo.step
    import bloomery.components.reward_model.step
    import bloomery.components.sft.step  # noqa: F401


def config_of(settings: dict[str, Any]) -> Any:
    """The config of the step `dpo`, if a `loss` is told, of `reward_model`, if `center` is, else of `sft`, that trains
    one epoch."""
    from bloomery.components.core.modelling.fine_tuning import FineTuningConfig
    from bloomery.components.dpo.config import DpoConfig
    from bloomery.components.reward_model.config import RewardModelConfig

    shared = {"learning_rate": 5e-4, "epochs": 1, "batch_size": BATCH}
    if "loss" in settings:
        return DpoConfig(**shared, **settings)
    if "center" in settings:
        return RewardModelConfig(**shared, **settings)
    return FineTuningConfig(**{**shared, "num_validations": 0, **settings})


def prefer(folder: Path, config: Any) -> dict[str, float]:
    """Train as the step of `config` does. Returns: as `measure`."""
    from bloomery.components.core import artifact
    from bloomery.components.core.records import Preference
    from bloomery.components.dpo import step as dpo
    from bloomery.components.reward_model import step as reward_model

    told = [chats(4 * BATCH, config.max_length, seed) for seed in (0, 1)]
    rows = [
        {
            "id": str(number),
            "task": "",
            "tools": "",
            "messages": good["messages"][:1],
            "chosen": good["messages"][1:],
            "rejected": bad["messages"][1:],
        }
        for number, (good, bad) in enumerate(zip(*told, strict=True))
    ]
    artifact.write_rows(folder / "pairs", Preference.SCHEMA, Preference.table(rows))
    started = time.perf_counter()
    given = {"preferences": folder / "pairs", "base_model": folder / "model"}
    if config.METHOD == "reward_model":
        reward_model.run(config, **given, reward_model=folder / "out")
    else:
        dpo.run(config, **given, model=folder / "out")
    return {"peak_bytes": peak_bytes(), "seconds": round(time.perf_counter() - started, 1)}


def measure(folder: Path, settings: dict[str, Any]) -> dict[str, float]:
    """Train as the step `sft` does, or `dpo`, or `reward_model`. Returns: the peak in bytes, and the seconds of all."""
    from bloomery.components.core import artifact
    from bloomery.components.core.modelling import checkpoints, training
    from bloomery.components.core.modelling.fine_tuning import fine_tune
    from bloomery.components.core.records import Chat

    length = settings["max_length"]
    config = config_of(settings)
    if config.METHOD != "fine_tuning":
        return prefer(folder, config)
    rows = [
        {"id": str(number), "task": "", "origin": "seed", "parent": "", **chat}
        for number, chat in enumerate(chats(2 * BATCH, length, 0))
    ]
    artifact.write_rows(folder / "chats", Chat.SCHEMA, Chat.table(rows))
    model = folder / "model"
    started = time.perf_counter()
    network, tokenizer = training.load(config, model)
    watched = chats(8, length, 1) if config.num_validations else []
    network, _ = fine_tune(config, network, tokenizer, chats=folder / "chats", texts=[], watched=watched, where="sft")
    checkpoints.save(folder / "out", network, tokenizer, like=model)
    return {"peak_bytes": peak_bytes(), "seconds": round(time.perf_counter() - started, 1)}


def child(folder: Path, settings: dict[str, Any]) -> Any:
    """Measure in a process of its own, which like the tasks of a run forks from one that has imported everything."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            with tempfile.TemporaryDirectory() as own:
                (Path(own) / "model").symlink_to(folder / "model")
                os.write(writing, json.dumps(measure(Path(own), settings)).encode())
        except Exception:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(0)
    os.close(writing)
    with open(reading, encoding="utf-8") as stream:
        text = stream.read()
    os.waitpid(process, 0)
    return json.loads(text or '{"failed": true}')


def planned(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What `bloomery plan` says of the same training."""
    from bloomery.components.core.modelling import plan, shapes
    from bloomery.components.core.modelling.cards import Card

    machine = Card("CPU", float("inf"), 0, 0, is_gpu=False)
    need = plan.of_training(shapes.read(folder / "model"), plan.Training.of(config_of(settings)), machine)
    return {"planned_bytes": round(need.peak), "most_at": need.moment}


def compared(found: dict[str, Any], folder: Path) -> dict[str, Any]:
    """`found` with what is planned today beside what was measured."""
    for name, settings in combinations().items():
        if name in found:
            found[name] |= planned(folder, settings)
            found[name]["error"] = round(found[name]["planned_bytes"] / found[name]["peak_bytes"] - 1, 3)
    return found


def main() -> None:
    from bloomery.infra import surroundings

    surroundings.enter()
    file = Path(__file__).with_suffix(".json")
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    wanted = [] if sys.argv[1:] == ["planned"] else sys.argv[1:] or ["nothing", *combinations()]
    if wanted:
        import_all()
        found["imports"] = {"peak_bytes": peak_bytes()}
    with tempfile.TemporaryDirectory() as folder:
        model, nothing = Path(folder) / "model", Path(folder) / "nothing"
        made = os.fork()
        if made == 0:
            make_model(model / "model")
            make_model(nothing / "model", hidden=16, layers=1)
            os._exit(0)
        os.waitpid(made, 0)
        for name in wanted:
            settings = combinations().get(name, {"max_length": 16})
            found[name] = {**child(nothing if name == "nothing" else model, settings), **surrounding()}
            print(name, found[name], flush=True)
            file.write_text(json.dumps(compared(found, model), indent=1) + "\n", encoding="utf-8")
        file.write_text(json.dumps(compared(found, model), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
