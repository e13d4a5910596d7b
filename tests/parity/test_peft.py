"""LoRA and DoRA equal PEFT's on a Llama with the same weights: outputs, gradients, folders."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from shapes import decoder_config
from transformers import LlamaConfig, LlamaForCausalLM

from pardalis.adapters import (
    Adapter,
    DoRAConfig,
    LoRAConfig,
    adapter_of,
    install,
    load_adapter,
    merge,
    row_ids,
    save_adapter,
    start,
)
from pardalis.interop.names import rename
from pardalis.model import Decoder, initialise
from pardalis.objectives import linear_cross_entropy
from pardalis.tokens import Vocabulary

IDS = Vocabulary.build(n_codes=16, n_text=200)
CONFIG = decoder_config(
    vocab_size=IDS.size, context=64, d_model=48, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=80,
    init_std=0.1, qk_norm="none",
)  # fmt: skip
ROWS = ("image", "begin_image")
CASES = {
    "LoRA": LoRAConfig(rank=4, alpha=6.0),
    "LoRA of some matrices": LoRAConfig(rank=3, alpha=5.0, targets=("q", "v_proj", "down")),
    "rsLoRA": LoRAConfig(rank=4, alpha=6.0, rslora=True),
    "LoRA with rows": LoRAConfig(rank=4, alpha=6.0, rows=ROWS),
    "rows alone": LoRAConfig(targets=(), rows=ROWS),
    "DoRA": DoRAConfig(rank=4, alpha=6.0),
    "rsDoRA with rows": DoRAConfig(rank=4, alpha=6.0, rslora=True, rows=ROWS),
}
# Measured: LoRA is equal, DoRA within 1.6e-6 in logits, which reach 3, and 1.3e-6 of gradients, 1.
LOGITS, GRADIENTS = 1e-5, 5e-6
# PEFT reads a name that transformers has renamed; it warns about config.json of the base, which
# a model in memory has not.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
each_case = pytest.mark.parametrize("case", CASES)


def base() -> Decoder:
    return initialise(Decoder(CONFIG), 0).eval()


def peer_of(model: Decoder) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=IDS.size, hidden_size=48, intermediate_size=80, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        rms_norm_eps=CONFIG.norm.eps, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": CONFIG.position.theta},
    )  # fmt: skip
    peer = LlamaForCausalLM(config).eval()
    state = model.state_dict()
    peer.load_state_dict({rename(name, "ours", "transformers"): t for name, t in state.items()})
    return peer


def trained(config: LoRAConfig) -> tuple[Decoder, Adapter]:
    """Return an adapted model whose adapter does something, and the adapter."""
    model, ids = base(), row_ids(config.rows, IDS)
    names = install(model, config, ids)
    start(model, config, 7)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                scale = 0.3 * parameter.abs().mean() if "lora_B" not in name else 0.2
                parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    state = model.state_dict()
    values = {name: state[name].clone() for name in names}
    return model, adapter_of(config, base(), IDS, values)


def tokens() -> torch.Tensor:
    return torch.randint(8, IDS.size, (2, 20), generator=torch.Generator().manual_seed(2))


def loss_of(logits: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), tokens()[:, 1:].flatten()
    )


def name_in_peft(name: str) -> str:
    """Return PEFT's name of a trained parameter."""
    module, _, key = name.rpartition(".")
    theirs = rename(f"{module}.weight", "ours", "transformers").removesuffix(".weight")
    ends = {
        "lora_A": "lora_A.default.weight",
        "lora_B": "lora_B.default.weight",
        "lora_magnitude": "lora_magnitude_vector.default.weight",
        "rows": "token_adapter.trainable_tokens_delta.default",
    }
    return f"base_model.model.{theirs}.{ends[key]}"


@each_case
def test_outputs_and_gradients_are_those_of_peft(case, compare, tmp_path):
    ours, adapter = trained(CASES[case])
    save_adapter(adapter, tmp_path / "adapter", IDS)
    theirs = peft.PeftModel.from_pretrained(
        peer_of(base()), str(tmp_path / "adapter"), is_trainable=True
    ).eval()
    mine, other = ours(tokens()), theirs(input_ids=tokens()).logits
    compare(f"PEFT, {case}", "logits", mine, other, atol=LOGITS)
    loss_of(mine).backward()
    loss_of(other).backward()
    peers = {name: p for name, p in theirs.named_parameters() if p.requires_grad}
    own = {name_in_peft(n): p for n, p in ours.named_parameters() if p.requires_grad}
    assert own.keys() == peers.keys()
    for name, parameter in own.items():
        scale = peers[name].grad.abs().max()
        assert scale > 0
        compare(f"PEFT, {case}", "gradients over their largest", parameter.grad / scale,
                peers[name].grad / scale, atol=GRADIENTS)  # fmt: skip


@each_case
def test_the_loss_of_training_has_the_same_gradients(case):
    """Training multiplies by ``head.weight`` itself, in chunks."""
    ours, _ = trained(CASES[case])
    hidden = ours.hidden(tokens())[:, :-1].flatten(0, 1)
    targets = tokens()[:, 1:].flatten()
    loss = linear_cross_entropy(
        hidden, ours.head.weight, targets, torch.ones(len(targets)), chunk=7
    )
    (loss.total / len(targets)).backward()
    found = {name: p.grad for name, p in ours.named_parameters() if p.requires_grad}
    plain, _ = trained(CASES[case])
    loss_of(plain(tokens())).backward()
    for name, parameter in plain.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(found[name], parameter.grad, atol=1e-6, rtol=1e-4)
        else:
            assert parameter.grad is None
    assert found


@each_case
def test_merging_gives_the_same_outputs(case, compare, tmp_path):
    ours, adapter = trained(CASES[case])
    merged = merge(base(), adapter)
    torch.testing.assert_close(merged(tokens()), ours(tokens()), atol=LOGITS, rtol=0)
    save_adapter(adapter, tmp_path / "adapter", IDS)
    theirs = peft.PeftModel.from_pretrained(peer_of(base()), str(tmp_path / "adapter"))
    state = theirs.merge_and_unload().state_dict()
    for name, tensor in merged.state_dict().items():
        compare(f"PEFT, {case}", "merged weights", tensor,
                state[rename(name, "ours", "transformers")], atol=1e-6)  # fmt: skip


def initial_in_peft(peer: LlamaForCausalLM, options: dict[str, Any], folder: Path) -> Any:
    theirs = peft.get_peft_model(peer, peft.LoraConfig(task_type="CAUSAL_LM", **options))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    theirs.save_pretrained(folder)
    return theirs.eval()


@pytest.mark.parametrize(
    "options",
    [
        {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"]},
        {"r": 4, "lora_alpha": 6, "target_modules": "all-linear", "use_rslora": True},
        {"r": 2, "target_modules": ["v_proj", "o_proj"], "rank_pattern": {"v_proj": 5}},
        {"r": 4, "target_modules": r".*layers\.1\..*\.(up|gate)_proj", "use_dora": True},
        {"r": 4, "target_modules": ["q_proj"],
         "trainable_token_indices": {"embed_tokens": [9, 3, 40]}},
    ],
)  # fmt: skip
def test_a_folder_that_peft_saved_is_read(options, compare, tmp_path):
    theirs = initial_in_peft(peer_of(base()), options, tmp_path)
    adapter = load_adapter(tmp_path, IDS)
    assert adapter.base is None
    merged = merge(base(), adapter)
    found, expected = merged(tokens()), theirs(input_ids=tokens()).logits
    compare("PEFT, its own folders", "logits", found, expected, atol=LOGITS)
    assert (expected - base()(tokens())).abs().max() > 1e-3


@each_case
def test_a_folder_survives_both_libraries_bit_for_bit(case, tmp_path):
    _, adapter = trained(CASES[case])
    save_adapter(adapter, tmp_path / "ours", IDS)
    theirs = peft.PeftModel.from_pretrained(
        peer_of(base()), str(tmp_path / "ours"), is_trainable=True
    )
    theirs.save_pretrained(tmp_path / "theirs")
    for folder in ("ours", "theirs"):
        read = load_adapter(tmp_path / folder, IDS)
        assert read.linears.keys() == adapter.linears.keys()
        for name, factors in adapter.linears.items():
            assert read.linears[name].keys() == factors.keys()
            for key, value in factors.items():
                assert torch.equal(read.linears[name][key], value)
        assert read.rows.keys() == adapter.rows.keys()
        assert all(torch.equal(read.rows[name], rows) for name, rows in adapter.rows.items())
        assert read.row_ids == adapter.row_ids
        told = {"rows": read.config.rows, "targets": read.config.targets}
        if adapter.linears:  # PEFT has no other numbers for rows
            assert read.config == replace(adapter.config, **told)


def test_an_adapter_begins_as_peft_begins_it():
    """A within 1 / sqrt(inputs) of 0, all of it used; B = 0; magnitudes the norms of the rows."""
    model, config = base(), DoRAConfig(rank=8)
    install(model, config)
    start(model, config, 0)
    peers = dict(
        peft.get_peft_model(
            peer_of(base()),
            peft.LoraConfig(r=8, use_dora=True, target_modules="all-linear"),
        ).named_parameters()
    )
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        theirs = peers[name_in_peft(name)]
        if name.endswith("lora_A"):
            bound = parameter.shape[1] ** -0.5
            for values in (parameter, theirs):
                assert values.abs().max() <= bound
                assert values.detach().std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
        else:
            torch.testing.assert_close(parameter, theirs, atol=1e-6, rtol=0)
