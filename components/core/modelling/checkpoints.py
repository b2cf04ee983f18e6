"""Checkpoints: loading, saving and the checks that keep a wrong one from being trained, measured or served in
silence."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bloomery.components.core import artifact, repository_code, s3, uploads
from bloomery.components.core.data.chats import chat
from bloomery.components.core.errors import DataError, ModelError, ServiceError
from bloomery.components.core.modelling import faults, templates, wholeness
from bloomery.components.core.modelling.faults import weight_files
from bloomery.components.core.repository_code import Consent

__all__ = ["weight_files"]

logger = logging.getLogger(__name__)

STORED = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""torch's names of the dtypes that safetensors writes and that are trained."""


def device() -> str:
    """Where a model answers fastest on this machine: `cuda`, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def load(path: Path, *, dtype: str = "auto", on: str = "cpu") -> tuple[Any, Any]:
    """(model in evaluation mode, tokenizer with left padding) of a checkpoint folder; `dtype` as in transformers.

    `on` is the device of the weights: `device()` for what answers, while trainers take them from the CPU to theirs.
    Weights of a GGUF are unpacked as they are loaded. A tokenizer without a pad token pads with EOS: masks and labels
    come from lengths, so that nothing is lost by it.
    Raises: ModelError as `check`, if tensors are not those of config.json, or if the tokenizer writes tokens that the
    model has no embedding for.
    """
    check(path)
    from transformers import AutoModelForCausalLM, GenerationConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    warnings.filterwarnings("ignore", module="torchao")  # of its own deprecations, which no user can act on
    gguf = faults.gguf(path)
    weights: dict[str, Any] = {"use_safetensors": True}
    if gguf:  # the config beside it, as transformers 5.24 reads no head_dim of a Qwen 3 out of the file
        weights = {"gguf_file": gguf.name, "config": load_config(path)}
        _unpack_q5_0()
    tokenizer = load_tokenizer(path)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            device_map=None if on == "cpu" else on,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are told below, by name
            **weights,
            **repository_code.allowed(path),
        )
        model, told = loaded
        if gguf:  # transformers 5.23 then reads no generation_config.json
            model.generation_config = GenerationConfig.from_pretrained(path)
    except Exception as error:  # of any kind: config and weights are read by code of each architecture
        raise ModelError(f"{path}: the checkpoint does not load: {reason(path, error)}") from None
    wholeness.check_found(path, told)
    embeddings: Any = model.get_input_embeddings()
    check_vocabulary(path, tokenizer, embeddings.weight.shape[0])
    # torch gives the pad token's row no gradient; where the pad token ends turns too, it has to learn as others do.
    embeddings.padding_idx = None
    _leave_routers_alone(model)
    if getattr(model.config, "quantization_config", None):
        _give_whole_states(model)
    return model.eval(), tokenizer


def _give_whole_states(model: Any) -> None:
    """Let the output head read states that lie beside each other. Of the last ones of prompts, as they are cut out of
    all, torch 2.13 makes a product a row, each with a copy of the head: of 64 prompts and SmolLM2's 49,152 x 576 in
    int8 3.6 GB, and six times the seconds."""
    head = model.get_output_embeddings()
    if head is not None:
        head.register_forward_pre_hook(lambda module, given: (given[0].contiguous(), *given[1:]))


def _leave_routers_alone(model: Any) -> None:
    """Keep what the routers of a mixture of experts say out of every output: where TRL turns it on to balance them, and
    it is stored so, transformers weighs it against the whole mask in each decoding step, and fails."""
    settings = model.config.get_text_config()
    if getattr(settings, "output_router_logits", False):
        settings.output_router_logits = False


def load_tokenizer(path: Path) -> Any:
    """The tokenizer of a checkpoint folder, with left padding; it is written without a word on how it was loaded, which
    would make a model's digest depend on the environment (HF_HUB_OFFLINE). Raises: ModelError if it does not load."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left", **repository_code.allowed(path))
    except Exception as error:  # of any kind: a tokenizer is made by code of its class, after config.json
        raise ModelError(f"{path}: the tokenizer does not load: {reason(path, error)}") from None
    for told in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(told, None)
    if tokenizer.pad_token_id is None:
        with contextlib.suppress(ModelError):
            ends = templates.end_tokens(tokenizer)
            tokenizer.pad_token = tokenizer.eos_token or (ends and tokenizer.convert_ids_to_tokens(ends[0])) or None
    return tokenizer


def load_config(path: Path) -> Any:
    """transformers' config of a checkpoint folder. Raises: ModelError if it does not load."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, **repository_code.allowed(path))
    except Exception as error:  # of any kind: a config is read by code of its architecture
        raise ModelError(f"{path}: config.json does not load: {reason(path, error)}") from None


def reason(path: Path, error: Exception) -> str:
    """Why transformers did not load what lies in `path`: the first line of its error, or that it was to run code."""
    if repository_code.is_asked(error):
        return repository_code.refusal(path, "a class of it")
    return next(iter(str(error).splitlines()), type(error).__name__)[:300]


def check_vocabulary(path: Path, tokenizer: Any, rows: int) -> None:
    """Raise ModelError if text can become tokens beyond the `rows` of the embeddings.

    Added tokens that no text of ours holds may lie there, as Gemma 3's `<image_soft_token>` does in its text models.
    """
    beyond = {token: index for token, index in tokenizer.get_vocab().items() if index >= rows}
    template = json.dumps(tokenizer.chat_template, ensure_ascii=False) or ""
    used = [
        token
        for token, index in beyond.items()
        if index not in tokenizer.added_tokens_decoder
        or token in template
        or token in (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token)
    ]
    if used:
        raise ModelError(
            f"{path}: the tokenizer has {max(beyond.values()) + 1:,} tokens and the model embeddings for {rows:,}: "
            f"{', '.join(map(repr, used[:3]))} stand for nothing; take the tokenizer that belongs to the model, "
            "or resize its embeddings and train them"
        )


def differing_token(ours: Any, theirs: Any) -> tuple[str, int | None, int | None] | None:
    """The first token that stands for another number in one tokenizer than in the other, with its number in each (None:
    it is not there), or None if all are the same."""
    known, given = ours.get_vocab(), theirs.get_vocab()
    differing = (token for token in known.keys() | given.keys() if known.get(token) != given.get(token))
    first = min(differing, key=lambda token: (known.get(token, given.get(token, 0)), token), default=None)
    return None if first is None else (first, known.get(first), given.get(first))


def check_same_tokens(where: str, ours: Any, theirs: Any, teacher: str) -> None:
    """Raise ModelError, naming the first that differs, unless student and teacher have the same tokens; another chat
    template of the teacher, which then reads chats as the student's has them, is warned of."""
    if differing := differing_token(ours, theirs):
        token, own, other = ("not there" if part is None else part for part in differing)
        raise ModelError(
            f"{where}.teacher: the vocabularies differ: token {token!r} is {other} in {teacher} and {own} in the "
            "student, and what they say is compared token by token; take a teacher of the student's tokenizer, or let "
            "it answer (rejection_sampling) and fine-tune the student on the answers"
        )
    if ours.chat_template != theirs.chat_template:
        logger.warning("the teacher %s has another chat template; it reads chats as the student's has them", teacher)


def _unpack_q5_0() -> None:
    """Let transformers read Q5_0, which llama.cpp writes for Q4_K where a row is no multiple of 256: the reader of 5.23
    knows most types, and not this one."""
    import torch
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize
    from transformers.integrations.gguf import dequant

    kind = GGMLQuantizationType.Q5_0
    if kind in dequant.GGML_BLOCK:
        return

    def unpack(blocks: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return torch.from_numpy(dequantize(blocks.cpu().numpy(), kind)).to(blocks.device, dtype)

    dequant.GGML_BLOCK[kind] = GGML_QUANT_SIZES[kind]
    dequant._DEQUANT[kind] = unpack


def save(path: Path, model: Any, tokenizer: Any, *, like: Path | None = None) -> artifact.Manifest:
    """Write weights (safetensors), config and tokenizer under `path` and seal it as `model/1`.

    Each weight takes the dtype that it has in the checkpoint `like`, whatever it was trained in; code comes from
    there too. What ends a turn stands in generation_config.json, so that every engine that reads it stops there.
    """
    import torch

    if like is not None:
        stored = faults.tensors(like)
        own = getattr(torch, own_dtype(like), None)
        for name, weight in model.named_parameters():
            kept = STORED.get(stored[name][0]) if name in stored else None
            weight.data = weight.data.to(getattr(torch, kept) if kept else own or weight.dtype)
        if own is not None:
            model.config.dtype = own
    _leave_routers_alone(model)
    settings = model.generation_config
    settings.eos_token_id = templates.end_tokens(tokenizer, settings)
    settings.pad_token_id = templates.pad_token(tokenizer)
    if not settings.do_sample and (settings.temperature or settings.top_p or settings.top_k):
        settings.do_sample = any(
            value not in (None, default)
            for value, default in ((settings.temperature, 1.0), (settings.top_p, 1.0), (settings.top_k, 50))
        )  # else transformers refuses to write what some publish
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    if like is not None:
        repository_code.carry(like, path)
    return artifact.seal(path, "model/1")


def own_dtype(path: Path) -> str:
    """The dtype that a checkpoint's weights are stored in, in torch's words: its config's, or that of most weights."""
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    named = config.get("dtype") or config.get("torch_dtype") or config.get("text_config", {}).get("dtype")
    if named:
        return str(named).removeprefix("torch.")
    counted = Counter(STORED.get(kind, "float32") for kind, shape in faults.tensors(path).values() if len(shape) > 1)
    return counted.most_common(1)[0][0] if counted else "float32"


def num_parameters(path: Path) -> int:
    """Numbers in the safetensors of a checkpoint, from their heads; 0 for a GGUF."""
    return sum(math.prod(shape) for _, shape in faults.tensors(path).values())


def check(path: Path, *, to_train: bool = False, has_chats: bool = True) -> None:
    """Raise ModelError, naming every fault, unless `path` holds what serving needs, and `to_train` what training needs.

    Reads only the small files and the heads of the weights. `has_chats`: it needs a chat template.
    """
    told = faults.found(path, to_train=to_train, has_chats=has_chats)
    if told:
        raise ModelError("\n".join(f"{path}: {fault}" for fault in told))


def check_template(tokenizer: Any, where: Path) -> None:
    """Raise ModelError, naming `where`, unless it can be proven which tokens of a chat are the assistant's, and a turn
    ends with a token that stops an answer."""
    try:
        templates.trained_rows(tokenizer, chat("What is this?", "An answer."))
    except ModelError as error:
        raise ModelError(f"{where}: {error}") from None


def num_bytes(path: Path) -> int:
    """Bytes of the weight files on disk."""
    return sum(file.stat().st_size for file in weight_files(path))


def named(key: str, name: str, revision: str, consents: Sequence[Consent] = ()) -> Path:
    """The folder `name`, that of an object store in the cache, or the hub's model of that name; `key` of the recipe
    names it in errors. Its own code may be run if it has one of the `consents`, and is fetched only then."""
    folder = _named(key, name, revision, with_code=any(one.model == name for one in consents))
    repository_code.admit(key, name, folder, consents)
    return folder


def _named(key: str, name: str, revision: str, *, with_code: bool) -> Path:
    if "://" in name:
        name = str(uploads.fetched(name))
    if Path(name).is_dir():
        return Path(name)
    if Path(name).suffix == ".gguf":
        raise ModelError(
            f"{key}: {name} is a GGUF, which can be asked and not trained; give the folder of the checkpoint in "
            "safetensors"
        )
    if Path(name).is_file():
        raise ModelError(f"{key}: {name} is a file; give the folder of the checkpoint, with config and tokenizer")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise DataError(f"{key}: no folder {name}; give a checkpoint folder or a hub name such as org/model")
    patterns = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", *(["*.py"] if with_code else [])]
    try:
        fetched = snapshot_download(
            name, revision=revision, allow_patterns=patterns, ignore_patterns=list(faults.ORIGINALS)
        )
        return Path(fetched)
    except HFValidationError:
        raise DataError(
            f"{key}: no folder {name}, and it is no hub name; give a checkpoint folder or org/model"
        ) from None
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).split("\n")[0][:200]
        raise ServiceError(
            f"{key}: no folder {name} here, and the hub did not give it: {reason}; give the path of a checkpoint "
            "folder, or see to the name, the network (HF_ENDPOINT names a mirror) and, for a gated model, HF_TOKEN"
        ) from None


def fetch(uri: str, target: Path) -> None:
    """Copy the checkpoint at `uri` (a folder, or a store's URI) to `target`; ModelError if it is not there any more."""
    folder = Path(uri.removeprefix("file://"))
    if folder.is_dir():
        artifact.link_tree(folder, target)
        return
    if uri.startswith(s3.SCHEME):
        _fetch_objects(uri.rstrip("/"), target)
        return
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(uri)
        system.get(path.rstrip("/") + "/", f"{target}/", recursive=True)
    except (OSError, ImportError, ValueError) as error:
        raise ModelError(
            f"{uri}: the checkpoint is not there ({str(error)[:200]}); name one that is, or if a registry's alias "
            "names it restore it, or point the alias to a version that exists"
        ) from None


def _fetch_objects(uri: str, target: Path) -> None:
    """Read all that lies under `uri`; what its manifest lists has to be as it says."""
    told = s3.text(f"{uri}/{artifact.MANIFEST}")
    known = artifact.Manifest.model_validate_json(told).files if told is not None else {}
    names = {*s3.names(uri), *known}
    if not names:
        raise ModelError(
            f"{uri}: the checkpoint is not there; name one that is, or if a registry's alias names it restore it, or "
            "point the alias to a version that exists"
        )
    try:
        s3.get_all({f"{uri}/{name}": (target / name, known[name].sha256 if name in known else None) for name in names})
    except DataError as error:
        raise ModelError(f"{uri}: the registered checkpoint is not whole: {error}; publish it again") from None


def publish(source: Path, store: str) -> str:
    """Copy the checkpoint `source` to `store`, under its content digest, and return the URI; a copy that is there is
    kept. In a folder it appears whole; on S3 the manifest comes last, so that without it nothing is there."""
    digest = artifact.read_manifest(source, "model/1").digest[:24]
    if "://" not in store:
        target = Path(store).absolute() / digest
        if not (target / artifact.MANIFEST).is_file():
            artifact.link_tree(source, target)
        return str(target)
    uri = f"{store.rstrip('/')}/{digest}"
    if uri.startswith(s3.SCHEME):
        if s3.text(f"{uri}/{artifact.MANIFEST}") is None:
            s3.put({f"{uri}/{name}": source / name for name in artifact.read_manifest(source).files})
            s3.put_text(f"{uri}/{artifact.MANIFEST}", (source / artifact.MANIFEST).read_text(encoding="utf-8"))
        return uri
    import fsspec

    system, path = fsspec.core.url_to_fs(uri)
    if not system.exists(f"{path}/{artifact.MANIFEST}"):
        system.put(f"{source}/", f"{path}/", recursive=True)
    return uri
