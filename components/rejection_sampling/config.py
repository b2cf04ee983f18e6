"""Settings of rejection sampling."""

from typing import Literal

from pydantic import Field, field_validator

from bloomery.components.core.config import Config, Seed
from bloomery.components.core.modelling.context import TooLong


class RejectionSamplingConfig(Config):
    """Rejection sampling: several answers a prompt, verified, the right ones kept."""

    num_samples: int = Field(default=8, gt=0)
    """Answers sampled for each prompt."""
    temperature: float = Field(default=0.8, gt=0)
    """Softmax temperature; 0.7 to 1.0 are usual for rejection sampling (RFT, arXiv 2308.01825, uses 0.7)."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus of the sampling distribution."""
    too_long: TooLong = "drop"
    """Of a prompt that leaves no room in the model's context for an answer of `max_new_tokens`: `drop` makes it a
    reject, `truncate_left` asks it without the beginning of its last turn, `error` ends the run."""
    min_score: float = Field(default=1.0, gt=0, le=1)
    """An answer with this score of its verifier or more is right. 1: exactly right, as RFT keeps; text metrics (chrf,
    rouge_l, bleu) need less, which sets the quality of what is learnt: look at scores of good answers first."""
    judge: Literal["verifier", "reward_model"] = "verifier"
    """Who says what is right. `verifier`: `min_score`; a reward model of the chain then ranks the right answers.
    `reward_model`: the best of the samples is right and the others are wrong, the worst first (RAFT, arXiv 2304.06767),
    for questions whose right answers no verifier knows."""
    accepted_per_prompt: int = Field(default=1, gt=0)
    """Distinct right answers kept for each prompt, highest score first, of equal ones the most frequent."""
    pairs_per_prompt: int = Field(default=2, ge=0)
    """Preference pairs for each prompt that has right and wrong answers."""
    corrections_per_prompt: int = Field(default=0, ge=0)
    """Chats for each prompt that has right and wrong answers in which a wrong one, the likeliest first, is asked again
    by `correction` and put right: pairs of a wrong try and a right one (arXiv 2211.00053; Pair-SFT of 2409.12917, which
    finds that training on them alone teaches to change right answers as well: few beside many plain ones). Fine-tuning
    gives their last turn alone a loss, whatever `train_on` says."""
    correction: str = (
        "There might be an error in the solution above because of lack of understanding of the question. Please "
        "correct the error, if any, and rewrite the solution."
    )
    """What the user says to a wrong answer: SCoRe's words (arXiv 2409.12917, appendix); give them in the language of
    the questions."""
    abstain: str | dict[str, str] = ""
    """What is better said than anything wrong, such as `I do not know.`: each prompt of which every sample was wrong
    makes one pair that prefers it to the likeliest of them (R-Tuning, arXiv 2311.09677, teaches such answers where the
    model was wrong). By the group of the prompt, where questions come in several languages: `{en: I do not know., ko:
    잘 모르겠습니다.}`; a group that is not named makes none. '': no such pairs."""
    seed: Seed = 17
    """Seed of the sampling."""

    @field_validator("abstain")
    @classmethod
    def _says_something(cls, abstain: str | dict[str, str]) -> str | dict[str, str]:
        texts = abstain.values() if isinstance(abstain, dict) else [abstain] if abstain else []
        if not all(text.strip() for text in texts):
            raise ValueError("expected a sentence, or one a group, and not blanks; leave out a group that has none")
        return abstain

    @field_validator("correction")
    @classmethod
    def _asks_again(cls, correction: str) -> str:
        if not correction.strip():
            raise ValueError("expected what the user says to a wrong answer, and not blanks")
        return correction

    @property
    def needed_inputs(self) -> set[str]:
        """The reward model, where it judges."""
        return {"reward_model"} if self.judge == "reward_model" else set()
