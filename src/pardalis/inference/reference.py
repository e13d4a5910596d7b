"""The naive loop: one request, no cache, the whole sequence through the model for every id.

Slow on purpose and short enough to be seen to be right. Every faster loop is tested for equality
with this one.
"""

import torch

from pardalis.inference.request import Request
from pardalis.inference.sampling import guide, sample
from pardalis.model import Decoder
from pardalis.tokens import Grammar, Mode, Rule


@torch.inference_mode()
def generate_reference(model: Decoder, grammar: Grammar, request: Request) -> list[int]:
    """Return the ids that follow the prompt.

    Raises:
        GrammarError: the prompt is malformed.
        RequestError: the limits leave no room for what they demand.
    """
    vocabulary = grammar.vocabulary
    device = model.embedding.weight.device
    allowed_ids = torch.from_numpy(grammar.allowed_ids()).to(device)
    ids = list(request.prompt_ids)
    state = grammar.begin(ids, request.limits)
    while (rule := grammar.rule(state, request.limits)) is not Rule.NOTHING:
        logits = model(torch.tensor([ids], device=device))[:, -1]
        in_picture = state.mode is Mode.IMAGE
        if rule is Rule.CODE and request.guidance != 1:
            opened = len(ids) - 1 - ids[::-1].index(vocabulary.begin_image_id)
            alone = torch.tensor([[vocabulary.bos_id, *ids[opened:]]], device=device)
            scale = torch.tensor([request.guidance], device=device)
            logits = guide(logits, model(alone)[:, -1], scale)
        sampling = request.picture if in_picture else request.text
        allowed = allowed_ids[rule][None]
        chosen = int(sample(logits, allowed, [sampling], [request.seed], [len(ids)]))
        state = grammar.advance(state, chosen, len(ids))
        ids.append(chosen)
    return ids[len(request.prompt_ids) :]
