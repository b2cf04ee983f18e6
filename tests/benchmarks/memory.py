"""Peak memory of what reads or trains a model, at three vocabularies and two lengths, each in a fresh process.

`python tests/benchmarks/memory.py` writes memory.json beside it: mebibytes above those of the loaded model, of
`likelihood` (64 texts), `sft` (LoRA, batches of 8, 64 validation chats) and `dpo` (LoRA, batches of 8, some 30 pairs
held out), with glibc's settings of `infra/surroundings.py` and without. Memory by the size of corpora: token_shards.py.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from surrounding import surrounding

VOCABULARIES = (2_048, 49_152, 152_000)
LENGTHS = (128, 512)
JOBS = ("likelihood", "sft", "dpo")
TEMPLATE = (
    "{%- for message in messages -%}{%- if message['role'] == 'assistant' -%}<a>{% generation %}"
    "{{ message['content'] }}<eos>{% endgeneration %}{%- else -%}<u>{{ message['content'] }}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}<a>{%- endif -%}"
)


def make_model(folder: Path, vocabulary: int) -> Path:
    """A narrow Llama whose vocabulary is as large as told: nearly all that it costs are its logits."""
    import torch
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from bloomery.components.core.modelling import checkpoints

    special = ["<pad>", "<eos>", "<u>", "<a>"]
    probed = ["An", "answer."]  # what checkpoints.check_template says
    words = [*special, *probed, *(f"w{number}" for number in range(vocabulary - len(special) - len(probed)))]
    backend = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(special)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", chat_template=TEMPLATE
    )
    settings = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    checkpoints.save(folder, LlamaForCausalLM(settings), tokenizer)
    return folder


def words(count: int, vocabulary: int, seed: int) -> str:
    chance = random.Random(seed)
    return " ".join(f"w{chance.randrange(vocabulary - 6)}" for _ in range(count))


def peak_mebibytes() -> float:
    """The most memory that was resident in this process, pages of mapped files among it."""
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    numbers = {line.split(":")[0]: int(line.split()[1]) for line in status if line.endswith("kB")}
    return numbers["VmHWM"] / 1024


def run_likelihood(model: Path, folder: Path, vocabulary: int, length: int) -> float:
    from bloomery.components.core.modelling.generation import Generator

    generator = Generator.load(model)
    generator.log_likelihood([words(8, vocabulary, 0)], max_length=8)
    before = peak_mebibytes()
    texts = [words(length, vocabulary, seed) for seed in range(64)]
    generator.log_likelihood(texts, max_length=length)
    return peak_mebibytes() - before


def run_sft(model: Path, folder: Path, vocabulary: int, length: int) -> float:
    from bloomery.components.core import artifact
    from bloomery.components.core.data.chats import chat
    from bloomery.components.core.modelling import checkpoints
    from bloomery.components.core.modelling.fine_tuning import FineTuningConfig, fine_tune
    from bloomery.components.core.records import Chat

    def chats(count: int, first: int) -> list[Any]:
        return [
            chat(words(length // 2, vocabulary, first + n), words(length // 2 - 4, vocabulary, -first - n))
            for n in range(count)
        ]

    rows = [
        {"id": str(number), "messages": messages, "tools": "", "task": "", "origin": "seed", "parent": ""}
        for number, messages in enumerate(chats(32, 0))
    ]
    artifact.write_rows(folder / "chats", "chat/2", Chat.table(rows))
    config = FineTuningConfig(
        learning_rate=1e-3, epochs=1, batch_size=8, max_length=length, num_validations=2, adapter={"rank": 4}
    )
    network, tokenizer = checkpoints.load(model)
    warm(network)
    before = peak_mebibytes()
    watched = [{"messages": messages, "tools": ""} for messages in chats(64, 1_000)]
    fine_tune(config, network, tokenizer, chats=folder / "chats", texts=[], watched=watched, where="sft")
    return peak_mebibytes() - before


def run_dpo(model: Path, folder: Path, vocabulary: int, length: int) -> float:
    from bloomery.components.core import artifact
    from bloomery.components.core.data.chats import chat, message
    from bloomery.components.core.modelling import checkpoints
    from bloomery.components.core.records import Preference
    from bloomery.components.dpo.config import DpoConfig
    from bloomery.components.dpo.step import run

    half = length // 2
    rows = [
        {
            "id": str(number),
            "task": "",
            "tools": "",
            "messages": chat(words(half, vocabulary, number)),
            "chosen": [message("assistant", words(half - 4, vocabulary, number + 1_000))],
            "rejected": [message("assistant", words(half - 4, vocabulary, number + 2_000))],
        }
        for number in range(64)
    ]
    artifact.write_rows(folder / "pairs", "preference/3", Preference.table(rows))
    config = DpoConfig(
        learning_rate=1e-4, epochs=1, batch_size=8, max_length=length, validation_share=0.5, adapter={"rank": 4}
    )
    warm(checkpoints.load(model)[0])
    before = peak_mebibytes()
    run(config, preferences=folder / "pairs", base_model=model, model=folder / "out")
    return peak_mebibytes() - before


def warm(network: Any) -> None:
    """Import what trainers import, which is no matter of logits, and read a few tokens."""
    import torch
    import trl.trainer.dpo_trainer
    import trl.trainer.sft_trainer  # noqa: F401

    network(torch.tensor([[1, 2, 3]]))


def child(job: str, vocabulary: int, length: int, *, settings: bool) -> Any:
    from bloomery.infra import surroundings

    names = surroundings.of(1)
    environment = {name: value for name, value in os.environ.items() if name not in names or settings}
    environment |= names if settings else {}
    environment |= {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, __file__, job, str(vocabulary), str(length)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        return f"failed: {(done.stderr.strip().splitlines() or ['no word'])[-1][:200]}"
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    if len(sys.argv) > 2:
        job, vocabulary, length = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
        with tempfile.TemporaryDirectory() as name:
            model = make_model(Path(name) / "model", vocabulary)
            print(json.dumps(round(globals()[f"run_{job}"](model, Path(name), vocabulary, length))))
        return
    found: dict[str, Any] = {**surrounding()}
    for settings in (True, False):
        for job in JOBS:
            for vocabulary in VOCABULARIES:
                for length in LENGTHS:
                    key = f"{job}, vocabulary {vocabulary}, {length} tokens" + ("" if settings else ", plain glibc")
                    found[key] = child(job, vocabulary, length, settings=settings)
                    print(key, found[key], flush=True)
    Path(__file__).with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
