"""Settings of reinforcement learning."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from bloomery.components.core.config import Config
from bloomery.components.core.modelling.training import TooLong, TrainingConfig
from bloomery.components.core.scoring.verify import pattern_problem


class RewardWeights(Config):
    """What an answer is worth: the weighted sum of these."""

    verifier: float = Field(default=1.0, ge=0, le=1_000)
    """Weight of the score, in [0, 1], that the verifier of the question's task gives; with 0 it is measured only."""
    reward_model: float = Field(default=1.0, ge=0, le=1_000)
    """Weight of the score that a reward model of the chain gives, which has standard deviation 1 over the answers of
    its pairs (-1 for an answer that does not end); without one in the chain it says nothing."""
    length: float = Field(default=0.0, ge=0, le=1_000)
    """Weight of what long answers lose: nothing up to the share `length_from` of their task's `max_new_tokens`, from
    there linearly to 1 at the end (soft overlong punishment: DAPO, arXiv 2503.14476, equation 13). DAPO's weight is 1
    beside rewards of -1 and 1, which is 0.5 beside a verifier's 0 and 1."""
    length_from: float = Field(default=0.8, gt=0, lt=1)
    """Share of `max_new_tokens` from which length costs; DAPO's is 16,384 of 20,480."""
    format: float = Field(default=0.0, ge=0, le=1_000)
    """Weight of 1 for an answer that `format_pattern` matches (DeepSeek-R1, arXiv 2501.12948, section 2.2.2)."""
    format_pattern: str = ""
    """Regular expression of all that the model writes, its reasoning included, such as
    `<think>.+</think>\\s*\\S.*`; `.` matches line breaks."""

    @model_validator(mode="after")
    def _format_is_whole(self) -> RewardWeights:
        if problem := pattern_problem(self.format_pattern):
            raise ValueError(f"format_pattern: {self.format_pattern!r} is no regular expression: {problem}")
        if bool(self.format) != bool(self.format_pattern):
            raise ValueError("format and format_pattern: one without the other rewards nothing; give both or none")
        if not (self.verifier or self.reward_model or self.format):
            raise ValueError("no reward is left: give verifier, reward_model or format a weight above 0")
        return self


class GrpoConfig(TrainingConfig):
    """Reinforcement learning: the model answers, and learns from what its answers are worth beside each other.

    An optimiser step takes `batch_size` x `gradient_accumulation_steps` answers, which are all sampled from the model
    as it is before the step; `epochs` are passes over the prompts.
    """

    METHOD = "reinforcement"
    TAKES_SOFT_PROMPT = True

    algorithm: Literal["grpo", "rloo"] = "grpo"
    """`grpo`: an answer is compared with the mean of its prompt's answers, in their standard deviations (DeepSeekMath,
    arXiv 2402.03300); `rloo`: with the mean of the other ones (REINFORCE leave-one-out, arXiv 2402.14740)."""
    num_generations: int = Field(default=8, ge=2)
    """Answers sampled for each prompt; TRL's default. DeepSeekMath samples 64, DAPO 16, the RLOO paper 2 and 4: more
    make it likelier that some are right and some wrong."""
    temperature: float = Field(default=1.0, gt=0)
    """Softmax temperature of the samples, and of the likelihoods that are learnt from them; 1.0 is TRL's, and that of
    DAPO's published run (verl, recipe/dapo/run_dapo_qwen2.5_32b.sh)."""
    beta: float = Field(default=0.04, ge=0)
    """Weight of the divergence from the model that was begun with: in GRPO's loss (DeepSeekMath, section 4.2), taken
    from the reward in RLOO. 0 saves the second copy of the weights (none is needed under an adapter), and the
    divergence is then not measured; DeepSeek-R1 uses 0.001, DAPO 0."""
    loss: Literal["dapo", "dr_grpo", "bnpo", "grpo"] = "dapo"
    """GRPO's mean over tokens. `dapo`: over all of the step (DAPO, section 3.3; TRL's default); `dr_grpo`: by the
    constant `max_new_tokens`, and rewards are not divided by their standard deviation (arXiv 2503.20783); `bnpo`: over
    those of a forward pass; `grpo`: of each answer first, which favours short right answers and long wrong ones.
    RLOO's is over whole answers."""
    rewards: RewardWeights = RewardWeights()
    """What an answer is worth."""
    kl_budget: float = Field(default=10.0, gt=0)
    """Divergence from the first model, in nats an answer, above which a rising reward is warned of as perhaps hacked. A
    reading aid: in arXiv 2009.01325, figure 5, the reward model went on rising there and people's preference did not.
    Long reasoning needs more."""
    too_long: TooLong = "drop"
    """Of a prompt that leaves no room in `max_length`, or in the context of the model or of the reward model, for an
    answer of `max_new_tokens`, of several tasks the most of theirs, to which all are answered: `drop` leaves it out,
    `truncate_left` asks it without the beginning of its last turn, `error` ends the run."""

    @model_validator(mode="after")
    def _steps_hold_whole_groups(self) -> GrpoConfig:
        if self.adapter and self.adapter.is_soft and self.beta:
            raise ValueError(
                f"beta: found {self.beta:g}, and the model that was begun with has no tokens of adapter.kind "
                f"{self.adapter.kind} to be compared by; set beta to 0"
            )
        answers = self.batch_size * self.gradient_accumulation_steps
        if answers % self.num_generations:
            nearest = max(1, round(answers / self.num_generations)) * self.num_generations
            raise ValueError(
                f"a step takes batch_size x gradient_accumulation_steps = {answers} answers, which is no multiple of "
                f"num_generations = {self.num_generations}; the nearest that is one: {nearest}"
            )
        return self

    @property
    def needed_inputs(self) -> set[str]:
        """The reward model, where nothing else rewards."""
        return set() if self.rewards.verifier or self.rewards.format else {"reward_model"}
