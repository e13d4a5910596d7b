"""Our decoder and Hugging Face's Chameleon give the same numbers from the same weights.

Its ``forward`` overwrites the logits of image ids, so the comparison is beneath that mask: hidden
states, then the bare head.
"""

import pytest
import torch
from transformers import ChameleonConfig, ChameleonForConditionalGeneration

from pardalis.model import Decoder, ModelConfig, document_mask, initialise
from pardalis.objectives import linear_logsumexp

# Ours first. The rest of a name is the same in both.
NAMES = (
    ("embedding.", "model.embed_tokens."),
    ("head.", "lm_head."),
    ("trunk.norm.", "model.norm."),
    ("trunk.blocks.", "model.layers."),
    (".attention.", ".self_attn."),
    (".attention_norm.", ".input_layernorm."),
    (".feed_forward_norm.", ".post_attention_layernorm."),
    (".feed_forward.", ".mlp."),
)
# Measured over these cases: 3.0e-6 in hidden states of size up to 4.7, 2.3e-6 in logits; gradients
# of a parameter differ by at most 1.4e-6 of its largest.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def theirs_of(name: str) -> str:
    for ours, theirs in NAMES:
        name = name.replace(ours, theirs)
    return name


def pair(**changes) -> tuple[Decoder, ChameleonForConditionalGeneration]:
    config = ModelConfig(
        **{"vocab_size": 90, "context": 64, "d_model": 48, "n_layers": 2, "n_heads": 4,
           "n_kv_heads": 4, "d_ff": 80, "init_std": 0.1} | changes
    )  # fmt: skip
    ours = initialise(Decoder(config), seed=0).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # norms at 1 and 0 would hide a misplaced scale or shift
        for name, parameter in ours.named_parameters():
            if "norm" in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    theirs = ChameleonForConditionalGeneration(
        ChameleonConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.d_model,
            intermediate_size=config.d_ff,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            num_key_value_heads=config.n_kv_heads,
            max_position_embeddings=config.context,
            rms_norm_eps=config.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            swin_norm=config.norm_placement == "reordered",
            vocabulary_map={"<image>": 4},
            vq_config={"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1,
                       "embed_dim": 8, "latent_channels": 8, "num_embeddings": 4,
                       "resolution": 16},
        )
    ).eval()  # fmt: skip
    state = {theirs_of(name): tensor for name, tensor in ours.state_dict().items()}
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected
    assert all("vqmodel" in name for name in missing)
    return ours, theirs


CASES = [
    {},
    {"n_kv_heads": 2},
    {"n_kv_heads": 1, "rope_theta": 500.0},
    {"norm_placement": "reordered"},
    {"norm_placement": "reordered", "n_kv_heads": 2, "rope_theta": 1e6},
]


@pytest.mark.parametrize("changes", CASES)
def test_logits(changes):
    ours, theirs = pair(**changes)
    ids = torch.randint(10, 90, (2, 33), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = theirs.model(input_ids=ids).last_hidden_state
        torch.testing.assert_close(ours.hidden(ids), expected, **CLOSE)
        torch.testing.assert_close(ours(ids), theirs.lm_head(expected), **CLOSE)


@pytest.mark.parametrize("changes", CASES)
def test_gradients_of_the_loss(changes):
    ours, theirs = pair(**changes)
    ids = torch.randint(10, 90, (2, 20), generator=torch.Generator().manual_seed(2))
    targets = ids.roll(-1, 1)
    logits = theirs.lm_head(theirs.model(input_ids=ids).last_hidden_state)
    torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), reduction="sum"
    ).backward()
    mask = document_mask(torch.zeros_like(ids))
    hidden = ours.hidden(ids, mask=mask).flatten(0, 1)
    target_logit, lse = linear_logsumexp(hidden, ours.head.weight, targets.flatten(), 13)
    (lse - target_logit).sum().backward()
    parameters = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        expected = parameters[theirs_of(name)].grad
        atol = 1e-5 * float(expected.abs().max())
        torch.testing.assert_close(parameter.grad, expected, rtol=0, atol=atol, msg=name)
