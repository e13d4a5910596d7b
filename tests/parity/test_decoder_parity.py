"""Our decoder and Hugging Face's Chameleon and Llama give the same numbers from the same weights.

Chameleon's ``forward`` there overwrites the logits of image ids, so everything but the test of that
mask is compared beneath it: hidden states, then the bare head. All in fp32.
"""

import dataclasses

import numpy as np
import pytest
import torch
from shapes import changed, decoder_config
from torch import Tensor
from transformers import (
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from pardalis.inference import Request, SamplingConfig, generate_ids, generate_reference
from pardalis.inference.cache import PagedCache, PassLayout, SequencePart
from pardalis.interop.names import rename
from pardalis.model import (
    Decoder,
    ModelConfig,
    RoPEScaling,
    attention_mask,
    document_mask,
    initialise,
)
from pardalis.model.positions import rope_frequencies
from pardalis.objectives import linear_cross_entropy
from pardalis.tokens import Grammar, Limits, Rule, Vocabulary

IDS = Vocabulary.build(n_codes=16, n_text=200)
BASE = decoder_config(
    vocab_size=IDS.size,
    context=64,
    d_model=48,
    n_layers=2,
    n_heads=4,
    n_kv_heads=4,
    d_ff=80,
    init_std=0.1,
)
LLAMA_3 = RoPEScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=64)
# Each with its own random weights. Activations as small as an init_std of 0.02 gives show the eps
# of a norm, which others drown.
CASES = [
    {},
    {"n_kv_heads": 2, "norm_eps": 1e-6, "init_std": 0.02},
    {"n_kv_heads": 1, "rope_theta": 500.0},
    {"qk_norm_groups": 1, "d_model": 64, "n_heads": 2, "n_kv_heads": 2},  # as Chameleon-7B
    {"qk_norm_groups": 2, "n_kv_heads": 2, "rope_theta": 1e6},
    {"qk_norm_groups": 2, "n_heads": 8, "n_kv_heads": 8, "d_ff": 128, "n_layers": 3},
    {"norm_placement": "reordered"},
    {"norm_placement": "reordered", "n_kv_heads": 2, "rope_theta": 1e6},
    {"norm_placement": "reordered", "n_kv_heads": 1, "qk_norm_groups": 1, "norm_eps": 1e-6,
     "init_std": 0.02},
    {"norm_placement": "reordered", "d_model": 64, "n_heads": 8, "qk_norm_groups": 2,
     "n_layers": 3},  # as Chameleon-34B: more query heads than key heads than groups
    {"norm_placement": "reordered", "d_model": 128, "n_heads": 2, "n_kv_heads": 2,
     "rope_theta": 500.0},
    {"qk_norm": "none", "n_kv_heads": 2, "norm_eps": 1e-6},
    {"qk_norm": "none", "n_kv_heads": 1, "norm_eps": 1e-6, "rope_theta": 5e5, "d_model": 64,
     "init_std": 0.02},
    # As Llama 3.1: of 32 frequencies 3 are kept, 3 are blended and 26 are divided by 8.
    {"qk_norm": "none", "d_model": 128, "n_heads": 2, "n_kv_heads": 1, "rope_theta": 5e5,
     "rope_scaling": LLAMA_3, "context": 256},
]  # fmt: skip
SCALED = len(CASES) - 1
# Largest differences measured over all cases, on one core of an AMD EPYC: 4.5e-6 in hidden states
# and logits, which reach 6; 4.8e-7 in the loss, 5.9; 2.3e-6 in gradients, 1.
LOGITS, LOSS, GRADIENTS = 1e-5, 3e-6, 1e-5
each_case = pytest.mark.parametrize(
    "case", range(len(CASES)), ids=lambda i: " ".join(f"{k}={v}" for k, v in CASES[i].items())
)

Peer = ChameleonForConditionalGeneration | LlamaForCausalLM


def build(seed: int, **changes) -> Decoder:
    model = initialise(Decoder(changed(BASE, **changes)), seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():  # norms at 1 and 0 would hide a misplaced scale or shift
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def peer_of(ours: Decoder) -> Peer:
    """Return the peer's network with our weights."""
    config = ours.config
    shape = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.feed_forward.width,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.attention.n_heads,
        "num_key_value_heads": config.attention.n_kv_heads,
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.norm.eps,
        "rope_parameters": rope_parameters(config),
        "bos_token_id": IDS.bos_id,  # both libraries' defaults are Llama's, not Chameleon's
        "eos_token_id": IDS.eos_id,
        "pad_token_id": IDS.pad_id,
        "tie_word_embeddings": False,
    }
    if config.attention.qk_norm.kind == "none":
        theirs: Peer = LlamaForCausalLM(LlamaConfig(**shape))
    else:
        # A code is written in letters, A for 0, between IMGIMG and Z.
        letters = str.maketrans("0123456789", "ABCDEFGHIJ")
        codes = {f"IMGIMG{str(c).translate(letters)}Z": i for c, i in enumerate(IDS.image)}
        smallest_vq = {
            "base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1, "embed_dim": 8,
            "latent_channels": 8, "num_embeddings": 4, "resolution": 16,
        }  # fmt: skip
        theirs = ChameleonForConditionalGeneration(
            ChameleonConfig(
                **shape,
                swin_norm=config.residual.placement == "reordered",
                vocabulary_map={"<image>": 7, **codes},
                vq_config=smallest_vq,
            )
        )
    state = {
        rename(name, "ours", "transformers"): for_each_head(name, tensor, config)
        for name, tensor in ours.state_dict().items()
    }
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected
    assert all("vqmodel" in name for name in missing)
    return theirs.eval()


def rope_parameters(config: ModelConfig) -> dict[str, object]:
    scaling = config.position.scaling
    if scaling is None:
        return {"rope_type": "default", "rope_theta": config.position.theta}
    return {
        "rope_type": "llama3",
        "rope_theta": config.position.theta,
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_context,
    }


def for_each_head(name: str, tensor: Tensor, config: ModelConfig) -> Tensor:
    """Repeat QK-norm's scales and shifts: the peer has no groups, only heads."""
    if "q_norm" in name or "k_norm" in name:
        n_heads = config.attention.n_heads if "q_norm" in name else config.attention.n_kv_heads
        return tensor.repeat_interleave(n_heads // len(tensor), 0)
    return tensor


def pair(case: int) -> tuple[str, Decoder, Peer]:
    """Return what to call the comparison, and both networks."""
    ours = build(case, **CASES[case])
    config = ours.config
    name = (
        "Llama"
        if config.attention.qk_norm.kind == "none"
        else f"Chameleon, norms {config.residual.placement}"
    )
    if config.position.scaling is not None:
        name += ", RoPE scaled"
    return f"decoder: {name}", ours, peer_of(ours)


def random_ids(n_rows: int, length: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(IDS.image.start, IDS.size, (n_rows, length), generator=generator)


def logits_beneath_the_mask(theirs: Peer, ids: Tensor, **inputs) -> Tensor:
    return theirs.lm_head(theirs.model(input_ids=ids, **inputs).last_hidden_state)


@each_case
@torch.no_grad()
def test_hidden_states_and_logits(case, compare):
    name, ours, theirs = pair(case)
    ids = random_ids(2, 33)
    expected = theirs.model(input_ids=ids).last_hidden_state
    compare(name, "hidden states", ours.hidden(ids), expected, atol=LOGITS)
    compare(name, "logits", ours(ids), theirs.lm_head(expected), atol=LOGITS)


@torch.no_grad()
def test_scaled_rope_over_a_whole_context(compare):
    """At four times the positions of the context before it was lengthened."""
    name, ours, theirs = pair(SCALED)
    ids = random_ids(2, 256)
    expected = theirs.model(input_ids=ids).last_hidden_state
    compare(name, "hidden states", ours.hidden(ids), expected, atol=LOGITS)
    compare(name, "logits", ours(ids), theirs.lm_head(expected), atol=LOGITS)


@pytest.mark.parametrize(
    ("d_head", "scaling"),
    [
        (64, LLAMA_3),
        (128, dataclasses.replace(LLAMA_3, original_context=8192)),  # Llama 3.1 and 3.3
        (64, dataclasses.replace(LLAMA_3, original_context=8192, factor=32.0)),  # 3.2 of 1B
        (96, RoPEScaling(
            factor=3.0, low_freq_factor=1.3, high_freq_factor=7.7, original_context=100
        )),
    ],
    ids=["tests", "Llama 3.1", "Llama 3.2", "odd"],
)  # fmt: skip
def test_scaled_frequencies(d_head, scaling, compare):
    config = LlamaConfig(
        hidden_size=d_head,
        num_attention_heads=1,
        max_position_embeddings=131_072,
        rope_parameters=rope_parameters(changed(BASE, rope_theta=5e5, rope_scaling=scaling)),
    )
    compare(
        "decoder: Llama, RoPE scaled",
        "frequencies of RoPE",
        rope_frequencies(d_head, 5e5, scaling),
        LlamaRotaryEmbedding(config).inv_freq,
    )


@each_case
def test_gradients_of_the_loss(case, compare):
    name, ours, theirs = pair(case)
    ids = random_ids(2, 20)
    targets = ids.roll(-1, 1).flatten()
    logits = logits_beneath_the_mask(theirs, ids).flatten(0, 1)
    torch.nn.functional.cross_entropy(logits, targets, reduction="sum").backward()
    hidden = ours.hidden(ids, mask=attention_mask(torch.zeros_like(ids))).flatten(0, 1)
    ones = torch.ones(len(targets))
    losses = linear_cross_entropy(hidden, ours.head.weight, targets, ones, chunk=13)
    losses.total.backward()
    compare(
        name,
        "loss, a token",
        losses.nll.mean(),
        torch.nn.functional.cross_entropy(logits, targets),
        atol=LOSS,
    )
    parameters = dict(theirs.named_parameters())
    for parameter_name, parameter in ours.named_parameters():
        expected = parameters[rename(parameter_name, "ours", "transformers")].grad
        if expected.shape != parameter.shape:  # heads of a group share what they learn
            expected = expected.unflatten(0, (len(parameter), -1)).sum(1)
        largest = expected.abs().max()
        compare(
            name,
            "gradients, each parameter's largest being 1",
            parameter.grad / largest,
            expected / largest,
            atol=GRADIENTS,
        )


@each_case
@torch.no_grad()
def test_step_by_step_with_caches(case, compare):
    """A prompt, single steps, and a step of several ids, each side with its own cache."""
    name, ours, theirs = pair(case)
    ids = random_ids(2, 24)
    cache = PagedCache(ours.cache_spec(), 11, 5, torch.float32, ours.device)
    pages = [[1, 2, 3, 4, 5], [9, 7, 8, 6, 10]]
    their_cache = DynamicCache(config=theirs.config)
    ends = [9, *range(10, 20), 24]
    for start, end in zip([0, *ends], ends, strict=False):
        rows = PassLayout(cache, [SequencePart(of_row, end - start, end) for of_row in pages])
        columns = torch.arange(start, end).repeat(2)
        layers = rows.place(columns)
        both = ours(ids[:, start:end].reshape(1, -1), columns[None], cache=layers)
        logits = both.unflatten(1, (2, -1))[0]
        expected = logits_beneath_the_mask(
            theirs, ids[:, start:end], past_key_values=their_cache, use_cache=True
        )
        compare(name, "logits, step by step", logits, expected, atol=LOGITS)
    assert their_cache.get_seq_length() == ids.shape[1]


@each_case
@torch.no_grad()
def test_left_padding_changes_nothing(case, compare):
    """Rows of their batch, padded on the left, against ours alone and against ours padded."""
    name, ours, theirs = pair(case)
    lengths = [17, 11, 5]
    rows = [random_ids(1, length, seed=length)[0] for length in lengths]
    width = max(lengths)
    padded = torch.full((len(rows), width), IDS.pad_id)
    attention_mask = torch.zeros_like(padded)
    for i, row in enumerate(rows):
        padded[i, width - len(row) :] = row
        attention_mask[i, width - len(row) :] = 1
    positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
    expected = logits_beneath_the_mask(
        theirs, padded, attention_mask=attention_mask, position_ids=positions
    )
    # Without positions theirs begin at the padding; RoPE does not care where a sequence begins.
    shifted = logits_beneath_the_mask(theirs, padded, attention_mask=attention_mask)
    ours_padded = ours(padded, positions, document_mask(attention_mask - 1))
    for i, row in enumerate(rows):
        begin = width - len(row)
        alone = ours(row[None])[0]
        compare(name, "logits, theirs padded", alone, expected[i, begin:], atol=LOGITS)
        compare(name, "logits, theirs padded", alone, shifted[i, begin:], atol=LOGITS)
        compare(
            name, "logits, both padded", ours_padded[i, begin:], expected[i, begin:], atol=LOGITS
        )


@pytest.mark.parametrize("case", [0, 9])
@torch.no_grad()
def test_the_mask_of_their_forward(case, compare):
    """Chameleon's sets image ids to the smallest number and leaves all others."""
    name, ours, theirs = pair(case)
    ids = random_ids(2, 12)
    logits = theirs(input_ids=ids).logits
    is_image = torch.zeros(IDS.size, dtype=torch.bool)
    is_image[IDS.image.start : IDS.image.stop] = True
    assert (logits[..., is_image] == torch.finfo(torch.float32).min).all()
    rest = logits[..., ~is_image]
    assert torch.equal(rest, logits_beneath_the_mask(theirs, ids)[..., ~is_image])
    compare(name, "logits, outside their mask", ours(ids)[..., ~is_image], rest, atol=LOGITS)


@torch.no_grad()
def test_their_loss_is_no_loss_on_image_ids():
    """Their mask is there in training too, so an image id as target has no probability."""
    _, _, theirs = pair(0)
    ids = torch.tensor([[IDS.bos_id, IDS.image.start, IDS.image.start + 1]])
    assert float(theirs(input_ids=ids, labels=ids).loss) > 1e30


@pytest.mark.parametrize(
    ("case", "wrong"),
    [
        (0, {"rope_theta": 9_000.0}),
        (1, {"norm_eps": 1e-5}),
        (1, {"qk_norm_eps": 1e-6}),
        (8, {"norm_eps": 1e-5}),
        (8, {"qk_norm_eps": 1e-6}),
        (6, {"norm_placement": "pre"}),
        (SCALED, {"rope_scaling": None}),
        (SCALED, {"rope_scaling": dataclasses.replace(LLAMA_3, factor=7.0)}),
        (SCALED, {"rope_scaling": dataclasses.replace(LLAMA_3, low_freq_factor=1.1)}),
        (SCALED, {"rope_scaling": dataclasses.replace(LLAMA_3, high_freq_factor=4.4)}),
        (SCALED, {"rope_scaling": dataclasses.replace(LLAMA_3, original_context=70)}),
    ],
)
@torch.no_grad()
def test_a_wrong_option_would_show(case, wrong):
    """The same weights under another option differ by far more than the bounds allow."""
    _, ours, theirs = pair(case)
    other = Decoder(changed(ours.config, **wrong)).eval()
    other.load_state_dict(ours.state_dict())
    ids = random_ids(2, 33)
    assert (other(ids) - logits_beneath_the_mask(theirs, ids)).abs().max() > 10 * LOGITS


# ── greedy decoding ──────────────────────────────────────────────────────────────────────────────

GRAMMAR = Grammar(IDS, codes_per_image=4)
ROOM = 49  # the last id is eos by our grammar; 48 are the model's own
# Init wide enough to write many different ids. Of the 1,849 chosen, each leads the next best by
# 1.7e-4 or more, so that rounding does not decide.
GREEDY = [
    {"init_std": 0.3},
    {"init_std": 0.3, "n_kv_heads": 1, "qk_norm_groups": 1},
    {"init_std": 0.3, "norm_placement": "reordered", "n_kv_heads": 2, "qk_norm_groups": 2},
    {"init_std": 0.3, "qk_norm": "none", "n_kv_heads": 2},
]


def prompts() -> list[tuple[int, ...]]:
    """Return prompts of different lengths, one with an image."""
    text = [
        (torch.arange(n) * 7 + 11 * n).remainder(len(IDS.text)).add(IDS.text.start).tolist()
        for n in (3, 14, 1, 8)
    ]
    image = [IDS.begin_image_id, *IDS.image[3:7], IDS.end_image_id]
    return [(IDS.bos_id, *ids) for ids in (*text, [*image, *text[0]])]


def our_greedy(ours: Decoder, generate) -> list[list[int]]:
    requests = [
        Request(
            prompt_ids=prompt,
            limits=Limits(max_new_tokens=ROOM, max_images=0),
            text=SamplingConfig(temperature=0.0),
        )
        for prompt in prompts()
    ]
    return [answer[: ROOM - 1] for answer in generate(ours, requests)]


def their_greedy(theirs: Peer, asked: list[tuple[int, ...]]) -> list[list[int]]:
    """Return what their ``generate`` writes for prompts, padded on the left into one batch.

    Our grammar forbids special and image ids in text, so they are forbidden to theirs. Both stop
    after an eos of the model's own.
    """
    width = max(map(len, asked))
    written = theirs.generate(
        torch.tensor([[IDS.pad_id] * (width - len(ids)) + list(ids) for ids in asked]),
        attention_mask=torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in asked]),
        max_new_tokens=ROOM - 1,
        do_sample=False,
        suppress_tokens=np.flatnonzero(~GRAMMAR.allowed_ids()[Rule.TEXT]).tolist(),
    )[:, width:].tolist()
    return [ids[: ids.index(IDS.eos_id) + 1] if IDS.eos_id in ids else ids for ids in written]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("changes", GREEDY)
def test_greedy_text_equals_their_generate(changes, seed, compare):
    ours = build(seed, **changes, context=96)
    theirs = peer_of(ours)
    together = our_greedy(ours, lambda m, requests: generate_ids(m, GRAMMAR, requests))
    one_by_one = our_greedy(
        ours, lambda m, requests: [generate_reference(m, GRAMMAR, r) for r in requests]
    )
    alone = [their_greedy(theirs, [prompt])[0] for prompt in prompts()]
    name = "decoder: greedy text and generate()"
    compare(name, "ids, ours cached, theirs one by one", together, alone)
    compare(name, "ids, ours naive, theirs one by one", one_by_one, alone)
    compare(name, "ids, ours cached, theirs padded", together, their_greedy(theirs, prompts()))
    # They are no loops that every network would fall into, and hardly any stop early at an eos.
    assert len({token_id for answer in together for token_id in answer}) > 60
    assert sum(len(answer) == ROOM - 1 for answer in together) >= len(together) - 1


def test_greedy_text_shows_a_wrong_rope_base():
    ours = build(0, **GREEDY[0], context=96)
    wrong = Decoder(changed(ours.config, rope_theta=9_000.0)).eval()
    wrong.load_state_dict(ours.state_dict())
    answers = our_greedy(wrong, lambda m, requests: generate_ids(m, GRAMMAR, requests))
    assert answers != their_greedy(peer_of(ours), prompts())
