"""Log-probabilities by the whole sequence through the model, one token after the other."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from pardalis.model import LanguageModel


@torch.inference_mode()
def naive_log_probs(model: LanguageModel, ids: Sequence[int]) -> Float[Tensor, "T V"]:
    """Return the log-probabilities of all tokens after each token of a sequence."""
    return model(torch.tensor([ids]))[0].float().log_softmax(-1)


def naive_score(
    model: LanguageModel, prompt_ids: Sequence[int], continuation_ids: Sequence[int]
) -> tuple[list[float], bool]:
    """Return the log-probability of each token, and whether each is the most likely one."""
    log_probs = naive_log_probs(model, [*prompt_ids, *continuation_ids])[len(prompt_ids) - 1 : -1]
    ids = torch.tensor(continuation_ids)
    greedy = bool((log_probs.argmax(-1) == ids).all())
    return log_probs.gather(1, ids[:, None])[:, 0].tolist(), greedy
