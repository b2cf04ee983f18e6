"""MLflow's description of a checkpoint that lies at a URI: signature and input example, without logging the weights.

Large weights that are logged through a tracking server time out, so versions are registered by URI; MLflow then
reads `MLmodel` and the example from beside the weights (`mlflow.models.get_model_info(uri)`).
"""

from __future__ import annotations

import json


def files(question: str, weights: str, metadata: dict[str, str]) -> dict[str, str]:
    """Text of `MLmodel` and `input_example.json` by file name.

    The signature is that of OpenAI-style chat completions (`mlflow.types.llm`), which is what the champion is served
    as; `question` is a real one of the task, `weights` the format of the weights (`safetensors`, `gguf`).
    """
    import yaml
    from mlflow.models import Model, ModelSignature
    from mlflow.types.llm import CHAT_MODEL_INPUT_SCHEMA, CHAT_MODEL_OUTPUT_SCHEMA

    example = {"messages": [{"role": "user", "content": question}]}
    described = Model(
        signature=ModelSignature(inputs=CHAT_MODEL_INPUT_SCHEMA, outputs=CHAT_MODEL_OUTPUT_SCHEMA),
        saved_input_example_info={"artifact_path": "input_example.json", "type": "json_object"},
        flavors={"bloomery": {"format": weights, "task": "llm/v1/chat"}},
        metadata={"task": "llm/v1/chat", **metadata},
    )
    return {
        "MLmodel": yaml.safe_dump(described.to_dict(), allow_unicode=True, sort_keys=False),
        "input_example.json": json.dumps(example, ensure_ascii=False, indent=1),
    }
