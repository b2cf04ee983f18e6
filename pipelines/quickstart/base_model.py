"""The base model: a 1.1 M parameter Llama with its own tokenizer, pre-trained on general text and skills.

It has never seen the shop. It is small enough for every step to run on two CPU cores in a minute or two, and
knows just enough (everyday sentences, the surface of SQL, six skills) for forgetting to be measurable.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY_SIZE = 2048
HIDDEN_SIZE = 128
NUM_LAYERS = 4
NUM_HEADS = 4
CONTEXT_TOKENS = 512
BLOCK_TOKENS = 128
BATCH_SIZE = 8
# Sentences are learnt in one reading; an exercise has few trained tokens and needs several.
CHAT_REPEATS = 3
# Measured on this model; the initial weights are larger than Llama's .02, which is meant for wide models.
# With Muon 600,000 tokens gave 68 % right answers to an earlier draft of the skills, 800,000 with AdamW alone 19 %.
LEARNING_RATE = 7e-3
INITIALIZER_RANGE = 0.06

PAD, EOS = "<|pad|>", "<|eos|>"
SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"

# The end token stands inside the generation block: an assistant-only loss must teach the model to stop.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "<|assistant|>{% generation %}{{ message['content'] }}<|eos|>{% endgeneration %}"
    "{%- else -%}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)


def train_base_model(general: Path, out: Path, seed: int) -> None:
    """Train tokenizer and model on `general` (text.jsonl, skills.jsonl) and write a checkpoint to `out`.

    CPU, fp32, one thread, deterministic for the seed. Writes safetensors, tokenizer with chat
    template, config and generation config.
    """
    import torch
    from transformers import PrinterCallback, default_data_collator
    from transformers.utils.logging import disable_progress_bar

    # Always two threads: sums are split alike, and the weights are the same, whatever the number of cores.
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    texts = [row["text"] for row in _rows(general / "text.jsonl")]
    chats = [
        [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["answer"]}]
        for row in _rows(general / "skills.jsonl")
        if row["split"] == "train"
    ]
    tokenizer = train_tokenizer(texts + [message["content"] for chat in chats for message in chat])
    model = new_model(tokenizer, seed)
    trainer = _trainer(model, _blocks(tokenizer, texts, chats, seed), default_data_collator, out, seed)
    trainer.remove_callback(PrinterCallback)
    disable_progress_bar()
    trainer.train()
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer (NFC, one token per digit) of VOCABULARY_SIZE tokens with the chat template."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    # Numbers are copied from question to SQL: digit by digit, no number is unknown.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[PAD, EOS, SYSTEM, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
    )


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """Return an untrained model for `tokenizer`; its weights depend on `seed` alone."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=HIDDEN_SIZE,
            intermediate_size=3 * HIDDEN_SIZE,
            num_hidden_layers=NUM_LAYERS,
            num_attention_heads=NUM_HEADS,
            num_key_value_heads=NUM_HEADS,
            max_position_embeddings=CONTEXT_TOKENS,
            tie_word_embeddings=True,
            initializer_range=INITIALIZER_RANGE,
            bos_token_id=None,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def _blocks(
    tokenizer: PreTrainedTokenizerFast, texts: list[str], chats: list[list[dict]], seed: int
) -> list[dict[str, list[int]]]:
    """Pack texts and chats, shuffled, into blocks of BLOCK_TOKENS; in chats only the answer is a label."""
    documents = [(ids + [tokenizer.eos_token_id],) * 2 for ids in tokenizer(texts)["input_ids"]]
    rendered = tokenizer.apply_chat_template(chats, return_dict=True, return_assistant_tokens_mask=True)
    for ids, mask in zip(rendered["input_ids"], rendered["assistant_masks"], strict=True):
        labels = [token if trained else -100 for token, trained in zip(ids, mask, strict=True)]
        documents += [(ids, labels)] * CHAT_REPEATS
    random.Random(seed).shuffle(documents)
    ids = [token for document, _ in documents for token in document]
    labels = [label for _, document in documents for label in document]
    ends = range(BLOCK_TOKENS, len(ids) + 1, BLOCK_TOKENS)
    return [{"input_ids": ids[end - BLOCK_TOKENS : end], "labels": labels[end - BLOCK_TOKENS : end]} for end in ends]


def _trainer(model: LlamaForCausalLM, blocks: list[dict[str, list[int]]], collator, out: Path, seed: int):
    from transformers import Trainer, TrainingArguments

    from bloomery.components.core.modelling.muon import Muon

    return Trainer(
        model=model,
        train_dataset=blocks,
        data_collator=collator,
        optimizers=(Muon(model, LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0), None),
        args=TrainingArguments(
            output_dir=str(out),
            use_cpu=True,
            seed=seed,
            data_seed=seed,
            num_train_epochs=1,
            per_device_train_batch_size=BATCH_SIZE,
            warmup_steps=30,
            lr_scheduler_type="cosine",
            max_grad_norm=1.0,
            save_strategy="no",
            eval_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
    )


def _rows(path: Path) -> list[dict]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
