"""Architectures that are built from options alone equal transformers' on random weights.

GPT-2 and OPT: learned positions, LayerNorm, two-matrix feed-forward with biases. OLMo-2: re-ordered
norms, and RMSNorm over all heads of queries and keys. Qwen3: RMSNorm over each head, heads of a
width of their own. All in fp32.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    Olmo2Config,
    Olmo2ForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from pardalis.inference import (
    EngineConfig,
    Request,
    SamplingConfig,
    generate_ids,
    generate_reference,
)
from pardalis.model import (
    AttentionConfig,
    Decoder,
    LayerNormConfig,
    LearnedPositionsConfig,
    MLPConfig,
    ModelConfig,
    NoQKNormConfig,
    QKRMSNormConfig,
    ResidualConfig,
    RMSNormConfig,
    RoPEConfig,
    SwiGLUConfig,
)
from pardalis.tokens import Grammar, Limits, Vocabulary

IDS = Vocabulary.build(n_codes=16, n_text=200)
V, D, L, N, F, T = IDS.size, 48, 2, 4, 96, 64
# The largest differences measured: 1.2e-6 in logits, which reach 3.2; 3.7e-8 in gradients, 0.23.
LOGITS, GRADIENTS = 1e-5, 5e-7


def randomised(peer: torch.nn.Module) -> torch.nn.Module:
    """Give every parameter random values, biases and norms included."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.1
            is_scale = "norm" in name.lower() or ".ln_" in name
            parameter.copy_(noise + (1 if is_scale and name.endswith("weight") else 0))
    return peer.eval()


def transposed(tensor: Tensor) -> Tensor:
    """Turn a matrix of GPT-2, stored as (in, out); a bias stays."""
    return tensor.mT if tensor.ndim == 2 else tensor


def gpt2() -> tuple[torch.nn.Module, ModelConfig, Callable[[dict[str, Tensor]], dict[str, Tensor]]]:
    peer = GPT2LMHeadModel(
        GPT2Config(vocab_size=V, n_positions=T, n_embd=D, n_layer=L, n_head=N, n_inner=F,
                   resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=2)
    )  # fmt: skip
    config = ModelConfig(
        vocab_size=V,
        context=T,
        d_model=D,
        n_layers=L,
        attention=AttentionConfig(n_heads=N, bias="all", qk_norm=NoQKNormConfig()),
        feed_forward=MLPConfig(width=F, activation="gelu_tanh"),
        norm=LayerNormConfig(),
        position=LearnedPositionsConfig(),
    )

    def names(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
        ours = {
            "embedding.weight": theirs["transformer.wte.weight"],
            "position_embedding.weight": theirs["transformer.wpe.weight"],
            "head.weight": theirs["transformer.wte.weight"],  # tied
        }
        for x in ("weight", "bias"):
            ours[f"trunk.norm.{x}"] = theirs[f"transformer.ln_f.{x}"]
            for n in range(L):
                a, b = f"trunk.blocks.{n}", f"transformer.h.{n}"
                qkv = transposed(theirs[f"{b}.attn.c_attn.{x}"]).chunk(3)
                for name, part in zip("qkv", qkv, strict=True):
                    ours[f"{a}.attention.{name}_proj.{x}"] = part
                ours[f"{a}.attention.o_proj.{x}"] = transposed(theirs[f"{b}.attn.c_proj.{x}"])
                ours[f"{a}.feed_forward.up_proj.{x}"] = transposed(theirs[f"{b}.mlp.c_fc.{x}"])
                ours[f"{a}.feed_forward.down_proj.{x}"] = transposed(theirs[f"{b}.mlp.c_proj.{x}"])
                ours[f"{a}.attention_norm.{x}"] = theirs[f"{b}.ln_1.{x}"]
                ours[f"{a}.feed_forward_norm.{x}"] = theirs[f"{b}.ln_2.{x}"]
        return ours

    return peer, config, names


def opt() -> tuple[torch.nn.Module, ModelConfig, Callable[[dict[str, Tensor]], dict[str, Tensor]]]:
    peer = OPTForCausalLM(
        OPTConfig(vocab_size=V, hidden_size=D, num_hidden_layers=L, ffn_dim=F, dropout=0.0,
                  num_attention_heads=N, max_position_embeddings=T, word_embed_proj_dim=D,
                  pad_token_id=1, bos_token_id=0, eos_token_id=2)
    )  # fmt: skip
    config = ModelConfig(
        vocab_size=V,
        context=T,
        d_model=D,
        n_layers=L,
        attention=AttentionConfig(n_heads=N, bias="all", qk_norm=NoQKNormConfig()),
        feed_forward=MLPConfig(width=F, activation="relu"),
        norm=LayerNormConfig(),
        position=LearnedPositionsConfig(),
    )
    parts = {
        "self_attn.q_proj": "attention.q_proj",
        "self_attn.k_proj": "attention.k_proj",
        "self_attn.v_proj": "attention.v_proj",
        "self_attn.out_proj": "attention.o_proj",
        "self_attn_layer_norm": "attention_norm",
        "fc1": "feed_forward.up_proj",
        "fc2": "feed_forward.down_proj",
        "final_layer_norm": "feed_forward_norm",
    }

    def names(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
        table = "model.decoder.embed_tokens.weight"
        ours = {
            "embedding.weight": theirs[table],
            "head.weight": theirs[table],  # tied
            # The first two vectors are of no position.
            "position_embedding.weight": theirs["model.decoder.embed_positions.weight"][2:],
        }
        for x in ("weight", "bias"):
            ours[f"trunk.norm.{x}"] = theirs[f"model.decoder.final_layer_norm.{x}"]
            for n in range(L):
                for their, our in parts.items():
                    name = f"model.decoder.layers.{n}.{their}.{x}"
                    ours[f"trunk.blocks.{n}.{our}.{x}"] = theirs[name]
        return ours

    return peer, config, names


LLAMA_PARTS = {
    "self_attn.q_proj": "attention.q_proj",
    "self_attn.k_proj": "attention.k_proj",
    "self_attn.v_proj": "attention.v_proj",
    "self_attn.o_proj": "attention.o_proj",
    "self_attn.q_norm": "attention.q_norm",
    "self_attn.k_norm": "attention.k_norm",
    "mlp.gate_proj": "feed_forward.gate_proj",
    "mlp.up_proj": "feed_forward.up_proj",
    "mlp.down_proj": "feed_forward.down_proj",
}


def llama_names(
    norms: dict[str, str], n_heads: tuple[int, int]
) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    def names(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
        ours = {
            "embedding.weight": theirs["model.embed_tokens.weight"],
            "trunk.norm.weight": theirs["model.norm.weight"],
            "head.weight": theirs["lm_head.weight"],
        }
        for n in range(L):
            for their, our in (LLAMA_PARTS | norms).items():
                tensor = theirs[f"model.layers.{n}.{their}.weight"]
                if our.endswith(("q_norm", "k_norm")):
                    tensor = tensor.unflatten(0, (n_heads["k_norm" in our], -1))
                ours[f"trunk.blocks.{n}.{our}.weight"] = tensor
        return ours

    return names


def olmo2() -> tuple[
    torch.nn.Module, ModelConfig, Callable[[dict[str, Tensor]], dict[str, Tensor]]
]:
    peer = Olmo2ForCausalLM(
        Olmo2Config(vocab_size=V, hidden_size=D, intermediate_size=F, num_hidden_layers=L,
                    num_attention_heads=N, num_key_value_heads=2, max_position_embeddings=T,
                    rms_norm_eps=1e-6, rope_parameters={"rope_type": "default", "rope_theta": 5e5},
                    pad_token_id=1, bos_token_id=0, eos_token_id=2)
    )  # fmt: skip
    config = ModelConfig(
        vocab_size=V,
        context=T,
        d_model=D,
        n_layers=L,
        attention=AttentionConfig(
            n_heads=N, n_kv_heads=2, qk_norm=QKRMSNormConfig(over="heads", eps=1e-6)
        ),
        feed_forward=SwiGLUConfig(width=F),
        norm=RMSNormConfig(eps=1e-6),
        position=RoPEConfig(theta=5e5),
        residual=ResidualConfig(placement="reordered"),
    )
    norms = {
        "post_attention_layernorm": "attention_norm",
        "post_feedforward_layernorm": "feed_forward_norm",
    }
    return peer, config, llama_names(norms, (N, 2))


def qwen3() -> tuple[
    torch.nn.Module, ModelConfig, Callable[[dict[str, Tensor]], dict[str, Tensor]]
]:
    peer = Qwen3ForCausalLM(
        Qwen3Config(vocab_size=V, hidden_size=D, intermediate_size=F, num_hidden_layers=L,
                    num_attention_heads=N, num_key_value_heads=2, head_dim=16, rms_norm_eps=1e-6,
                    max_position_embeddings=T, tie_word_embeddings=False,
                    rope_parameters={"rope_type": "default", "rope_theta": 1e6},
                    pad_token_id=1, bos_token_id=0, eos_token_id=2)
    )  # fmt: skip
    config = ModelConfig(
        vocab_size=V,
        context=T,
        d_model=D,
        n_layers=L,
        attention=AttentionConfig(
            n_heads=N, n_kv_heads=2, d_head=16, qk_norm=QKRMSNormConfig(eps=1e-6)
        ),
        feed_forward=SwiGLUConfig(width=F),
        norm=RMSNormConfig(eps=1e-6),
        position=RoPEConfig(theta=1e6),
    )
    norms = {
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "feed_forward_norm",
    }
    return peer, config, llama_names(norms, (1, 1))


CASES = {"GPT-2": gpt2, "OPT": opt, "OLMo-2": olmo2, "Qwen3": qwen3}


@pytest.fixture(params=CASES)
def pair(request) -> tuple[torch.nn.Module, Decoder, Callable]:
    peer, config, names = CASES[request.param]()
    randomised(peer)
    ours = Decoder(config)
    ours.load_state_dict(names(dict(peer.state_dict())))
    return peer, ours.eval(), names


def tokens(rows: int = 2, length: int = 40) -> Tensor:
    ids = torch.randint(8, V, (rows, length), generator=torch.Generator().manual_seed(1))
    ids[:, 0] = IDS.bos_id
    return ids


def test_logits(pair, compare):
    peer, ours, _ = pair
    ids = tokens()
    with torch.no_grad():
        theirs, mine = peer(ids).logits, ours(ids)
    compare(f"decoder of options, {type(peer).__name__}", "logits", mine, theirs, atol=LOGITS)


def test_gradients(pair, compare):
    peer, ours, names = pair
    ids = tokens()
    for logits in (peer(ids).logits, ours(ids)):
        logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None]).mean().backward()
    theirs = {name: parameter.grad for name, parameter in peer.named_parameters()}
    theirs.setdefault("lm_head.weight", torch.zeros(V, D))  # tied
    theirs = names(theirs)
    is_tied = peer.config.tie_word_embeddings
    for name, parameter in ours.named_parameters():
        if is_tied and name in ("embedding.weight", "head.weight"):
            continue  # theirs is the sum of both
        what = f"decoder of options, {type(peer).__name__}"
        compare(what, "gradients", parameter.grad, theirs[name], atol=GRADIENTS)


@pytest.mark.parametrize("weights", ["stored", "int8"])
def test_the_engine_equals_the_reference(pair, weights):
    """Packed and fused weights serve every architecture."""
    _, ours, _ = pair
    grammar = Grammar(IDS, codes_per_image=4)
    prompt = (IDS.bos_id, *range(IDS.text.start, IDS.text.start + 5))
    requests = [
        Request(
            prompt_ids=prompt,
            limits=Limits(max_new_tokens=20),
            text=SamplingConfig(temperature=0.0),
            image=SamplingConfig(temperature=0.0),
            seed=seed,
        )
        for seed in range(2)
    ]
    found = generate_ids(ours, grammar, requests, EngineConfig(weights=weights))
    if weights == "stored":
        assert found == [generate_reference(ours, grammar, request) for request in requests]
    assert all(found)
