"""The table of names covers every tensor exactly once and has the peers' names."""

import pytest
import torch
from shapes import changed, decoder_config
from transformers import (
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
)

from pardalis.interop.names import DECODER, TRANSFORMERS_VQ, lines, rename
from pardalis.model import PRESETS, Decoder

LAYOUTS = ("ours", "transformers", "meta")


def names(layout: str, n_layers: int, qk_norm: bool = True) -> list[str]:
    config = decoder_config(
        vocab_size=100, context=8, d_model=8, n_layers=n_layers, n_heads=2, d_ff=8,
        qk_norm="layer_norm" if qk_norm else "none",
    )  # fmt: skip
    return [getattr(line, layout).format(n=n) for line, n in lines(config)]


@pytest.mark.parametrize("qk_norm", ["layer_norm", "none"])
@pytest.mark.parametrize("preset", [name for name in PRESETS if not name.startswith("cm3leon")])
def test_our_names_are_those_of_the_decoder(preset, qk_norm):
    config = changed(PRESETS[preset]().sized(vocab_size=100, context=64), qk_norm=qk_norm)
    with torch.device("meta"):
        decoder = Decoder(config)
    ours = names("ours", config.n_layers, qk_norm != "none")
    assert sorted(ours) == sorted(decoder.state_dict())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("bias", ["none", "qkv", "all"])
@pytest.mark.parametrize("qk_norm", ["layer_norm", "rms_norm", "none"])
def test_our_names_are_those_of_any_decoder_of_its_kind(qk_norm, bias, tied):
    config = decoder_config(
        vocab_size=100, context=8, d_model=8, n_layers=2, n_heads=2, d_ff=8, qk_norm=qk_norm,
        attention={"bias": bias}, tie_embeddings=tied,
    )  # fmt: skip
    with torch.device("meta"):
        decoder = Decoder(config)
    ours = [line.ours.format(n=n) for line, n in lines(config)]
    assert sorted(ours) == sorted(decoder.state_dict())


@pytest.mark.parametrize("target", LAYOUTS)
@pytest.mark.parametrize("source", LAYOUTS)
def test_round_trip(source, target):
    there = [rename(name, source, target) for name in names(source, 12)]
    assert there == names(target, 12)
    assert [rename(name, target, source) for name in there] == names(source, 12)
    assert len(set(there)) == len(there)


def test_an_unknown_name_is_refused():
    for name in ("layers.0.attention.wx.weight", "model.layers.x.mlp.up_proj.weight", ""):
        for layout in LAYOUTS:
            with pytest.raises(KeyError):
                rename(name, layout, "ours")


def test_transformers_names_are_those_of_chameleon():
    shape = {"hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 11}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 40}
    images = {"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1}
    names_of_codes = {"<image>": 0, "<s>": 1, "IMGIMGAZ": 2}
    with torch.device("meta"):
        model = ChameleonForConditionalGeneration(
            ChameleonConfig(
                **shape, **heads, vq_config=images, vocabulary_map=names_of_codes, pad_token_id=0
            )
        )
    theirs = [name for name in model.state_dict() if not name.startswith(TRANSFORMERS_VQ)]
    assert sorted(names("transformers", 11)) == sorted(theirs)
    assert len(theirs) < len(model.state_dict())


def test_transformers_names_are_those_of_llama():
    shape = {"hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 11}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 40}
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**shape, **heads))
    assert sorted(names("transformers", 11, qk_norm=False)) == sorted(model.state_dict())


def test_metas_names_are_those_of_the_release():
    """Written out, as the release's loader demands them."""
    layer = {
        "attention.wq.weight", "attention.wk.weight", "attention.wv.weight", "attention.wo.weight",
        "attention.q_normalization.weight", "attention.q_normalization.bias",
        "attention.k_normalization.weight", "attention.k_normalization.bias",
        "feed_forward.w1.weight", "feed_forward.w2.weight", "feed_forward.w3.weight",
        "attention_norm.weight", "ffn_norm.weight",
    }  # fmt: skip
    whole = {"tok_embeddings.weight", "norm.weight", "output.weight"}
    of_layers = {f"layers.{n}.{name}" for n in (0, 1) for name in layer}
    assert set(names("meta", 2)) == whole | of_layers


def test_replicated_tensors():
    """All others are sharded; QK-norm is per rank. The release has no biases."""
    lines_of_release = [line for line in DECODER if not line.ours.endswith("_proj.bias")]
    whole = [line.meta for line in lines_of_release if line.cut is None]
    assert whole == [
        "layers.{n}.attention_norm.weight",
        "layers.{n}.ffn_norm.weight",
        "norm.weight",
    ]
    assert [line.ours for line in lines_of_release if line.rotary and not line.qk_norm] == [
        "trunk.blocks.{n}.attention.q_proj.weight",
        "trunk.blocks.{n}.attention.k_proj.weight",
    ]
