"""Decoding at Chameleon's sizes: 1,024 codes an image, 4,096 positions (arXiv 2405.09818)."""

import pytest
import torch
from shapes import decoder_config

from pardalis.inference import Request, generate_ids
from pardalis.model import Decoder, initialise
from pardalis.tokens import Grammar, Limits, Rule, Vocabulary

IDS = Vocabulary.build(n_codes=12, n_text=20)
GRAMMAR = Grammar(IDS, codes_per_image=1024)
CONTEXT = 4096


def test_an_image_is_1024_codes_and_its_end():
    """Whatever an untrained model prefers."""
    torch.set_num_threads(1)
    config = decoder_config(
        vocab_size=IDS.size, context=CONTEXT, d_model=8, n_layers=1, n_heads=1, n_kv_heads=1,
        d_ff=8, init_std=0.3,
    )  # fmt: skip
    model = initialise(Decoder(config), seed=0).eval()
    request = Request(
        prompt_ids=(IDS.bos_id, IDS.text.start),
        limits=Limits(text=False, max_images=1, max_new_tokens=CONTEXT - 2),
    )
    [ids] = generate_ids(model, GRAMMAR, [request])
    assert len(ids) == 1026
    assert (ids[0], ids[-1]) == (IDS.begin_image_id, IDS.end_image_id)
    assert all(token_id in IDS.image for token_id in ids[1:-1])
    assert len(set(ids[1:-1])) == IDS.n_codes


@pytest.mark.parametrize("n_text", [0, 1, 500, 1015, 1016, 2042, 3068, 3069])
def test_whole_images_of_a_context(n_text):
    """As many images after bos and text as leave one token for eos: at most three."""
    limits = Limits(max_new_tokens=CONTEXT - 1 - n_text)
    state = GRAMMAR.begin([IDS.bos_id] + [IDS.text.start] * n_text, limits)
    table, begins, index = GRAMMAR.allowed_ids(), [], 1 + n_text
    while (rule := GRAMMAR.rule(state, limits)) is not Rule.NOTHING:
        allowed = table[rule]
        if allowed[IDS.begin_image_id]:
            chosen = IDS.begin_image_id
            begins.append(index)
        else:
            chosen = IDS.text.start if allowed[IDS.text.start] else int(allowed.argmax())
        state = GRAMMAR.advance(state, chosen, index)
        index += 1
    assert index == CONTEXT  # text fills the rest, and eos is last
    assert len(begins) == (CONTEXT - 2 - n_text) // 1026 <= 3
    assert all(begin < 3070 for begin in begins)
    if n_text == 3068:  # the last index at which an image begins
        assert begins == [3069]
