"""TRL's trainers of reinforcement learning on our tokens: prompts as every other step renders them, answers sampled and
ended as in evaluation and serving."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bloomery.components.core import processes
from bloomery.components.core.modelling import sharding
from bloomery.components.core.modelling.generation import Generator
from bloomery.components.grpo.config import GrpoConfig
from bloomery.components.grpo.rewards import Rewards


def trainer_for(config: GrpoConfig, rewards: Rewards) -> tuple[type, type]:
    """The trainer that `config` names, rewarded by `rewards`, and the class of its arguments. A row's `prompt` is token
    ids; its other columns are the rewards'."""
    import torch
    from torch.utils.data import Sampler
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
    from trl.models import unwrap_model_for_generation

    is_rloo = config.algorithm == "rloo"
    base: Any = RLOOTrainer if is_rloo else GRPOTrainer

    class Order(Sampler[int]):
        """Every prompt once an epoch, `num_generations` times in a row, a generation at a time.

        A generation stands there once for each of its forward passes, as TRL wants it. The last of an epoch is filled
        up with prompts from its beginning. The order follows from seed and epoch, so that a training that goes on finds
        its place; TRL's follows from what the epochs before left of the random numbers, and leaves prompts out.
        """

        def __init__(self, num_prompts: int, per_generation: int, repeats: int) -> None:
            self.num_prompts, self.per_generation, self.repeats = num_prompts, per_generation, repeats
            self.epoch = 0

        def __len__(self) -> int:
            generations = -(-self.num_prompts // self.per_generation)
            return generations * self.per_generation * config.num_generations * self.repeats

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

        def __iter__(self) -> Iterator[int]:
            chance = torch.Generator()
            chance.manual_seed(1_000_003 * config.seed + self.epoch)
            order = torch.randperm(self.num_prompts, generator=chance).tolist()
            for start in range(0, self.num_prompts, self.per_generation):
                group = [order[at % len(order)] for at in range(start, start + self.per_generation)]
                for _ in range(self.repeats):
                    yield from (index for index in group for _ in range(config.num_generations))

    class OnOurTokens(base):  # type: ignore[misc]
        def __init__(self, **given: Any) -> None:
            super().__init__(reward_funcs=[reward for reward, _ in rewards.chosen()], **given)

        def _get_train_sampler(self, *_: Any) -> Sampler[int]:
            per_generation = self.args.generation_batch_size // config.num_generations
            return Order(len(self.train_dataset), per_generation, self.args.steps_per_generation)

        def _tokenize_prompts(self, prompts: list[list[int]]) -> tuple[list[list[int]], None, dict[str, Any]]:
            return prompts, None, {}

        def _generate_single_turn(self, prompt_ids: list[list[int]], *_: Any, **__: Any) -> Any:
            recomputing = {"gradient_checkpointing_kwargs": self.args.gradient_checkpointing_kwargs}
            whole = sharding.unsharded(self.model)
            with unwrap_model_for_generation(self.model_wrapped, self.accelerator, **recomputing) as model, whole:
                model.eval()  # the samples are those of the model as it would be served, without dropout
                found = Generator(model, self.processing_class).continued(
                    prompt_ids,
                    max_new_tokens=self.max_completion_length,
                    temperature=config.temperature,
                    chances_NT=self._chances(len(prompt_ids)),
                )
                model.train()
            answers = [ids for (ids,) in found]
            return answers if is_rloo else (answers, None)

        def _chances(self, num_rows: int) -> Any:
            """The chances of this process's answers: those that it would have, were all answers of the step its own."""
            drawing = torch.Generator()
            drawing.manual_seed(1_000_003 * config.seed + self.state.global_step)
            shape = (num_rows * processes.count(), self.max_completion_length)
            return torch.rand(shape, generator=drawing)[num_rows * processes.rank() :][:num_rows]

    return OnOurTokens, RLOOConfig if is_rloo else GRPOConfig


def arguments(config: GrpoConfig, rewards: Rewards, max_new_tokens: int) -> dict[str, Any]:
    """Keyword arguments of TRL's config. A generation is of one optimiser step: no answer is older than the weights,
    and every checkpoint falls between two generations, of which TRL saves none."""
    common = {
        "num_generations": config.num_generations,
        "steps_per_generation": config.gradient_accumulation_steps,
        "max_completion_length": max_new_tokens,
        "temperature": config.temperature,
        "beta": config.beta,
        "disable_dropout": True,  # likelihoods of two models are compared
        "reward_weights": [weight for _, weight in rewards.chosen()],
    }
    if config.algorithm == "rloo":
        return common
    return {**common, "loss_type": config.loss, "scale_rewards": "none" if config.loss == "dr_grpo" else "group"}
