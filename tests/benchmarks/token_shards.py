"""Memory of `cpt` by the size of its corpus, of `sft` by the number of its chats, and of `dpo` by that of its pairs.

`python tests/benchmarks/token_shards.py` writes token_shards.json beside it. Each step is run as it is (`run` of its
step.py) in a fresh process with glibc's settings of `infra/surroundings.py`, on a narrow Llama with the real tokenizer
of SmolLM2: it tokenises all rows to disk and takes a few optimiser steps. The rows are real texts of the folder that
BLOOMERY_DATA names (PEPs, EIPs, Korean web documents; answers about medicine as chats, or to be shortened in one of two
ways), again and again.

    rows, tokens                  documents, chats or pairs, and the tokens that were made of them
    mebibytes                     the most that was resident at once, pages of mapped files among it, which the kernel
                                  takes back when memory is short
    mebibytes_tokenising          the most that it cannot take back until all token ids are on disk, and
    mebibytes_training            from then on
    mebibytes_of_a_worker         the same of the largest process that tokenises; there is one for each core
    growth                        bytes a row more, and a token more, of the two that cannot be taken back

`--large` measures cpt on a billion tokens and sft on a million chats instead (`large`; half an hour on two cores).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import lzma
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from surrounding import surrounding

SIZES = {"cpt": (5_000_000, 25_000_000), "sft": (20_000, 100_000), "dpo": (1_000, 4_000)}
"""Tokens, roughly; chats; pairs, of some 600 tokens."""
LARGE = {"cpt": 1_000_000_000, "sft": 1_000_000}
CHARACTERS_PER_TOKEN = 3.2
CORPORA = (("peps_eips", "peps"), ("peps_eips", "eips"), ("web_docs_ko", "en"), ("web_docs_ko", "ko"))
PAIR_CHARACTERS = 2_400
BATCH, LENGTH, STEPS = 4, 512, 2
ROWS_AT_ONCE = 1_000
PROBES = 4
"""Documents whose perplexity is measured, at either size."""


def texts(data: Path, *corpora: tuple[str, str]) -> list[dict[str, Any]]:
    """The rows of compressed JSONL files."""
    rows = []
    for folder, name in corpora:
        with lzma.open(data / folder / f"{name}.jsonl.xz", "rt", encoding="utf-8") as stream:
            rows += [json.loads(line) for line in stream]
    return rows


def write_documents(folder: Path, data: Path, num_tokens: int) -> int:
    """A document/2 artifact of whole texts; the number of its rows."""
    from bloomery.components.core.artifact import Writer
    from bloomery.components.core.records import Document

    facts = {"source": "", "language": "en", "general": False, "time": "", "quality": None}
    rows = texts(data, *CORPORA)
    random.Random(0).shuffle(rows)
    writer, left = Writer(folder, "document/2"), CHARACTERS_PER_TOKEN * num_tokens
    numbered = enumerate(itertools.cycle(rows))
    while left > 0:
        written = []
        for number, row in itertools.islice(numbered, ROWS_AT_ONCE):
            key = f"{'0' if number < PROBES else 'f'}{number:015x}"  # whose beginning decides which are held out
            written.append({"id": key, "text": row["text"], **facts})
            left -= len(row["text"])
            if left <= 0:
                break
        writer.add(Document.table(written))
    return writer.close().rows


def write_chats(folder: Path, data: Path, num_chats: int) -> int:
    """A chat/2 artifact of questions and answers; the number of its rows."""
    from bloomery.components.core.artifact import Writer
    from bloomery.components.core.data.chats import chat
    from bloomery.components.core.records import Chat

    facts = {"tools": "", "task": "", "origin": "given", "parent": ""}
    rows = enumerate(itertools.islice(itertools.cycle(texts(data, ("medquad", "medquad"))), num_chats))
    writer = Writer(folder, "chat/2")
    while some := list(itertools.islice(rows, ROWS_AT_ONCE)):
        chats = [(str(number), chat(row["question"], row["answer"][:1_000])) for number, row in some]
        writer.add(Chat.table([{"id": key, "messages": messages, **facts} for key, messages in chats]))
    return writer.close().rows


def write_pairs(folder: Path, data: Path, num_pairs: int) -> int:
    """A preference/3 artifact of long answers and two short forms of each; the number of its rows."""
    from bloomery.components.core.artifact import Writer
    from bloomery.components.core.data.chats import chat, message
    from bloomery.components.core.records import Preference

    facts = {"task": "", "tools": "", "score": None}
    rows = texts(data, ("medquad", "medquad"))
    answers = itertools.cycle([row["answer"] for row in rows if len(row["answer"]) > 1_000])
    writer = Writer(folder, "preference/3")
    for number in range(num_pairs):
        long = f"{number}: {next(answers)} {next(answers)}"[:PAIR_CHARACTERS]
        sides = {"chosen": long[:100], "rejected": long[-100:]}
        row = {name: [message("assistant", text)] for name, text in sides.items()}
        row |= {"id": str(number), "messages": chat(f"Shorten this. {long}"), **facts}
        writer.add(Preference.table([row]))
    return writer.close().rows


def write_model(folder: Path, data: Path) -> None:
    """A narrow Llama with random weights and the tokenizer of SmolLM2."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from bloomery.components.core.modelling import checkpoints

    with tempfile.TemporaryDirectory() as name:
        for file in (data / "tokenizers" / "smollm2").iterdir():
            content = file.read_bytes()
            plain = lzma.decompress(content) if file.suffix == ".xz" else content
            (Path(name) / file.name.removesuffix(".xz")).write_bytes(plain)
        tokenizer = AutoTokenizer.from_pretrained(name)
    torch.manual_seed(0)
    settings = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=True,
        max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    checkpoints.save(folder, LlamaForCausalLM(settings), tokenizer)


def write_tasks(folder: Path) -> None:
    """A tasks/1 artifact without a question."""
    from bloomery.components.core import artifact
    from bloomery.components.core.records import Prompt

    artifact.write_rows(folder, "prompt/2", Prompt.table([]))
    (folder / "tasks.json").write_text("{}", encoding="utf-8")
    artifact.seal(folder, "tasks/1")


def run_step(step: str, folder: Path, num_rows: int, num_tokens: int) -> None:
    """The step on what stands in `folder`, with a few optimiser steps."""
    shared = {"learning_rate": 1e-4, "batch_size": BATCH, "max_length": LENGTH}
    if step == "cpt":
        from bloomery.components.cpt.config import CptConfig
        from bloomery.components.cpt.step import run as run_cpt

        epochs = STEPS * BATCH * LENGTH / num_tokens
        run_cpt(
            CptConfig(epochs=epochs, **shared),
            documents=folder / "rows",
            base_model=folder / "model",
            model=folder / "out",
        )
    elif step == "dpo":
        from bloomery.components.dpo.config import DpoConfig
        from bloomery.components.dpo.step import run as run_dpo

        run_dpo(
            DpoConfig(epochs=STEPS * BATCH / num_rows, **{**shared, "max_length": 2 * LENGTH}),
            preferences=folder / "rows",
            base_model=folder / "model",
            model=folder / "out",
        )
    else:
        from bloomery.components.sft.config import SftConfig
        from bloomery.components.sft.step import run as run_sft

        run_sft(
            SftConfig(epochs=STEPS * BATCH / num_rows, **shared),
            chats=folder / "rows",
            tasks=folder / "tasks",
            base_model=folder / "model",
            model=folder / "out",
        )


def resident(pid: int) -> dict[str, int]:
    """Resident memory of a process by kind, in KiB."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return {line.split(":")[0]: int(line.split()[1]) for line in status if line.endswith("kB")}


@contextlib.contextmanager
def watched(is_tokenised: Callable[[], bool]) -> Iterator[dict[str, float]]:
    """MiB of this process at most, before and after `is_tokenised`, and of its largest child."""
    import psutil

    found = dict.fromkeys(("mebibytes_tokenising", "mebibytes_training", "mebibytes_of_a_worker"), 0.0)
    ended, own = threading.Event(), psutil.Process()

    def look() -> None:
        while not ended.wait(0.05):
            seen = {"mebibytes_training" if is_tokenised() else "mebibytes_tokenising": resident(own.pid)["RssAnon"]}
            with contextlib.suppress(OSError, KeyError, ValueError):  # no child, or one that has ended
                seen["mebibytes_of_a_worker"] = max(resident(child.pid)["RssAnon"] for child in own.children())
            for name, kibibytes in seen.items():
                found[name] = max(found[name], round(kibibytes / 1024))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield found
    finally:
        ended.set()
        watcher.join()
        found["mebibytes"] = round(resident(own.pid)["VmHWM"] / 1024)


def measure(step: str, folder: Path, num_rows: int, num_tokens: int) -> dict[str, float]:
    """Memory and time of a step; its token ids are read from the store that it leaves."""
    from bloomery.components.core.modelling import token_shards

    def indices() -> list[Path]:
        return list((folder / "store" / "tokens").glob(f"*[!d]/{token_shards.INDEX}"))  # not that of *.unfinished

    started = time.time()
    with watched(lambda: bool(indices())) as found:
        run_step(step, folder, num_rows, num_tokens)
    (index,) = indices()
    tokens = token_shards.Tokens(index.parent).num_tokens
    seconds = {"tokenising": index.stat().st_mtime - started, "in_all": time.time() - started}
    told = {f"seconds_{name}": round(value, 1) for name, value in seconds.items()}
    return {"rows": num_rows, "tokens": tokens, **found, **told}


def child(step: str, size: int, data: Path) -> dict[str, float]:
    """`measure` of rows of this size in a fresh process."""
    from bloomery.infra import surroundings

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "model", data)
        write_tasks(folder / "tasks")
        num_rows = {"cpt": write_documents, "sft": write_chats, "dpo": write_pairs}[step](folder / "rows", data, size)
        settings = {**surroundings.of(1), "BLOOMERY_STORE": str(folder / "store"), "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, __file__, step, name, str(num_rows), str(size)]
        done = subprocess.run(command, env=os.environ | settings, stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(done.stdout.strip().splitlines()[-1])


def growth(small: dict[str, float], large: dict[str, float]) -> dict[str, float]:
    """Bytes that a row more, and a token more, takes in each phase."""
    return {
        f"bytes_{phase}_a_{name}": round(
            (large[f"mebibytes_{phase}"] - small[f"mebibytes_{phase}"])
            * 2**20
            / (large[f"{name}s"] - small[f"{name}s"]),
            2,
        )
        for phase in ("tokenising", "training")
        for name in ("row", "token")
    }


def main() -> None:
    """Measure every step at both sizes; `STEP FOLDER ROWS TOKENS` measures one in this process."""
    if len(sys.argv) > 3:
        step, folder, num_rows, num_tokens = sys.argv[1:]
        print(json.dumps(measure(step, Path(folder), int(num_rows), int(num_tokens))))
        return
    file, data = Path(__file__).with_suffix(".json"), Path(os.environ["BLOOMERY_DATA"])
    is_large = "--large" in sys.argv
    for step in [name for name in sys.argv[1:] if name != "--large"] or (LARGE if is_large else SIZES):
        sizes = []
        for size in [LARGE[step]] if is_large else SIZES[step]:
            sizes.append({**child(step, size, data), **surrounding()})
            print(step, sizes[-1], flush=True)
        found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        told = {"large": sizes[0]} if is_large else {"sizes": sizes, "growth": growth(*sizes)}
        found[step] = {**found.get(step, {}), **told}
        file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
