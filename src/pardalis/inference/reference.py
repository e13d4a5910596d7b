"""The reference loop: one request, no cache, the whole sequence through the model for every token.

It is slow on purpose and short enough to be verified by reading. Every faster loop is tested for
equality with it.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from pardalis.inference.generation import Guidance
from pardalis.inference.guidance import GuidanceTensors, apply_guidance, largest_k
from pardalis.inference.request import Request
from pardalis.inference.sampling import SamplerNeeds, SamplingTensors, prepare_ids, sample
from pardalis.model import LanguageModel
from pardalis.tokens import Grammar, Phase, Rule


@torch.inference_mode()
def generate_reference(model: LanguageModel, grammar: Grammar, request: Request) -> list[int]:
    """Return the ids that follow the prompt.

    Raises:
        GrammarError: the prompt is malformed.
        RequestError: the token budget is too small for what the limits demand.
    """
    device = model.device
    writable_ids = torch.tensor(grammar.writable_ids(), device=device)
    ids = list(request.prompt_ids)
    state = grammar.begin(ids, request.limits)
    while (rule := grammar.rule(state, request.limits)) is not Rule.NOTHING:
        logits = _next_logits(model, ids)[:, writable_ids]
        if rule is Rule.CODE and request.guidance is not None:
            logits = _guided(model, grammar, request, ids, logits)
        sampling = request.image if state.phase is Phase.IMAGE else request.text
        allowed = grammar.ranges()[rule]
        chosen = sample(
            logits,
            (torch.tensor([allowed.start]).to(device), torch.tensor([allowed.stop]).to(device)),
            SamplingTensors.of([sampling], [request.seed], device),
            torch.tensor([len(ids)], device=device),
            prepare_ids(writable_ids),
            SamplerNeeds.of([sampling]),
        )
        token_id = int(writable_ids[chosen])
        state = grammar.advance(state, token_id, len(ids))
        ids.append(token_id)
    return ids[len(request.prompt_ids) :]


def _next_logits(model: LanguageModel, ids: Sequence[int]) -> Float[Tensor, "1 V"]:
    return model(torch.tensor([ids], device=model.device))[:, -1]


def _guided(
    model: LanguageModel,
    grammar: Grammar,
    request: Request,
    ids: list[int],
    logits: Float[Tensor, "1 n"],
) -> Float[Tensor, "1 n"]:
    """Apply guidance to the logits of image tokens, which come first."""
    codes = torch.tensor(list(grammar.vocabulary.image), device=logits.device)
    guidance, masked = request.guidance, request.unconditional == "mask"
    unconditional = image_conditional = grammar.unconditional(ids, masked=masked)
    if isinstance(guidance, Guidance) and guidance.image is not None:
        image_conditional = grammar.images_only(ids)
    guided_codes = apply_guidance(
        logits[:, : len(codes)],
        _next_logits(model, unconditional)[:, codes],
        _next_logits(model, image_conditional)[:, codes],
        GuidanceTensors.of([guidance], logits.device),
        largest_k=largest_k([guidance]),
    )
    return torch.cat([guided_codes, logits[:, len(codes) :]], dim=1)
