"""datatrove: its Gopher, C4 and FineWeb filters, one process over documents already read, then its own program.

datatrove_rules.py rules TEXTS OUT      verdicts of each filter, seconds of the rules alone
datatrove_rules.py program FOLDER OUT   read, filter with two workers, write
"""

import json
import sys
import time
from pathlib import Path

from datatrove.data import Document
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.pipeline.readers import ParquetReader
from datatrove.pipeline.writers import JsonlWriter


def filters():
    """In the order in which FineWeb ran them."""
    return {
        "gopher_repetition": GopherRepetitionFilter(),
        "gopher": GopherQualityFilter(),
        "c4": C4QualityFilter(),
        "c4_any_line": C4QualityFilter(filter_no_terminal_punct=False),
        "fineweb": FineWebQualityFilter(),
    }


def reason(rules, text):
    """'' if the filter keeps the text."""
    try:
        found = rules.filter(Document(text=text, id=""))
    except ZeroDivisionError:  # a text without words
        return "error"
    return "" if found is True else found[1]


def rules(source, output):
    texts = [json.loads(line) for line in Path(source).read_text(encoding="utf-8").split("\n")[:-1]]
    found = filters()
    for name in found:
        reason(found[name], "Load the tokenizer. Then measure.")
    started = time.process_time()
    verdicts = {name: [] for name in found}
    for text in texts:
        for name in found:
            verdicts[name].append(reason(found[name], text))
    all_seconds = time.process_time() - started
    chain = [rules for name, rules in filters().items() if name != "c4_any_line"]
    started = time.process_time()
    stream = (Document(text=text, id=str(index)) for index, text in enumerate(texts) if text.strip())
    for step in chain:
        stream = step.run(stream)
    kept = sum(1 for _ in stream)
    seconds = time.process_time() - started
    report = {"verdicts": verdicts, "chain_seconds": seconds, "all_seconds": all_seconds, "chain_kept": kept}
    Path(output).write_text(json.dumps(report))


def program(source, output):
    steps = [rules for name, rules in filters().items() if name != "c4_any_line"]
    LocalPipelineExecutor(
        [ParquetReader(source, text_key="text", id_key="id"), *steps, JsonlWriter(f"{output}/kept")],
        tasks=2,
        workers=2,
        logging_dir=f"{output}/logs",
        skip_completed=False,
    ).run()


if __name__ == "__main__":
    {"rules": rules, "program": program}[sys.argv[1]](*sys.argv[2:])
