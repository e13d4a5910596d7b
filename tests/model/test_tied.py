"""A tied head is the embedding: one parameter that does what two equal ones do."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from shapes import changed, decoder_config
from torch import Tensor

from pardalis.batch import Batch
from pardalis.bundle import Bundle, load
from pardalis.errors import BundleError
from pardalis.inference import EngineConfig, Request, generate_ids
from pardalis.model import Decoder, TiedHead, initialise, model_costs
from pardalis.objectives import NextTokenConfig, token_log_probs
from pardalis.parameters import specs_of
from pardalis.tokens import Grammar, Limits, Vocabulary
from pardalis.train.optimizer import AdamWConfig, MuonConfig, Optimizer

CONFIG = decoder_config(
    vocab_size=50, context=16, d_model=32, n_layers=2, n_heads=2, n_kv_heads=2, d_ff=24,
    init_std=0.2, tie_embeddings=True,
)  # fmt: skip


def pair(**changes) -> tuple[Decoder, Decoder]:
    """Return a tied decoder and an untied one with the same values."""
    config = changed(CONFIG, **changes)
    tied = initialise(Decoder(config), 0)
    untied = Decoder(replace(config, tie_embeddings=False))
    untied.load_state_dict(tied.state_dict() | {"head.weight": tied.embedding.weight.detach()})
    return tied, untied


def batch() -> Batch:
    ids = torch.randint(0, 50, (2, 12), generator=torch.Generator().manual_seed(3))
    places = torch.arange(12).expand(2, -1)
    return Batch(
        ids=ids, targets=ids.roll(-1, 1), weights=torch.ones(2, 12), positions=places % 6,
        documents=places // 6,
    )  # fmt: skip


def next_tokens(model: Decoder) -> Tensor:
    objective = NextTokenConfig(loss_chunk=5, z_loss=1e-3).build({"image": range(8, 20)})
    return objective(model, batch()).total


def log_probs(model: Decoder) -> Tensor:
    row = batch()
    hidden = model.hidden(row.ids).flatten(0, 1)
    return token_log_probs(hidden, model.head, row.targets.flatten(), chunk=5).square().sum()


def whole_logits(model: Decoder) -> Tensor:
    return model(batch().ids).square().sum()


@pytest.mark.parametrize("loss", [next_tokens, log_probs, whole_logits])
def test_it_is_an_untied_model_whose_head_is_a_copy(loss):
    """To the bit: the same logits and loss, and the sum of both gradients."""
    tied, untied = pair(embedding={"scale": 2.0})
    assert torch.equal(tied(batch().ids), untied(batch().ids))
    losses = loss(tied), loss(untied)
    assert torch.equal(*losses)
    for each in losses:
        each.backward()
    found = {name: p.grad for name, p in tied.named_parameters()}
    expected = {name: p.grad for name, p in untied.named_parameters()}
    expected["embedding.weight"] = expected["embedding.weight"] + expected.pop("head.weight")
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.equal(found[name], gradient), name


def test_it_has_one_parameter_which_is_the_embedding():
    tied, untied = pair()
    names = [name for name, _ in untied.named_parameters() if name != "head.weight"]
    assert [name for name, _ in tied.named_parameters()] == names == list(tied.state_dict())
    assert list(specs_of(tied)) == names
    assert isinstance(tied.head, TiedHead)
    # Initial values do not depend on whether there is a head.
    alone = initialise(Decoder(untied.config), 0)
    for name, parameter in tied.named_parameters():
        assert torch.equal(parameter, alone.get_parameter(name))


@pytest.mark.parametrize("what", ["loaded", "assigned", "moved", "copied", "replaced"])
def test_the_head_stays_the_embedding(what):
    tied, _ = pair()
    other = {name: t + 1 for name, t in tied.state_dict().items()}
    if what == "loaded":
        tied.load_state_dict(other)
    elif what == "assigned":
        tied.load_state_dict(other, assign=True)
    elif what == "moved":
        tied.to(torch.float64)
    elif what == "copied":
        original, tied = tied, copy.deepcopy(tied)
        assert tied.head.weight is not original.head.weight
    else:
        tied.embedding.weight = torch.nn.Parameter(tied.embedding.weight.detach() * 2)
    assert tied.head.weight is tied.embedding.weight
    logits = tied(batch().ids)
    assert torch.equal(logits, tied.hidden(batch().ids) @ tied.embedding.weight.T)


@pytest.mark.parametrize("weights", ["stored", "int8"])
def test_the_engine_generates_the_same(weights):
    vocabulary = Vocabulary.build(n_codes=12, n_text=30)
    tied, untied = pair(vocab_size=vocabulary.size, context=64)
    first = vocabulary.text.start
    requests = [
        Request(prompt_ids=(vocabulary.bos_id, first + i), limits=Limits(max_new_tokens=20), seed=i)
        for i in range(3)
    ]
    tied_ids, untied_ids = (
        generate_ids(model.eval(), Grammar(vocabulary, 4), requests, EngineConfig(weights=weights))
        for model in (tied, untied)
    )
    assert tied_ids == untied_ids
    assert any(len(ids) > 5 for ids in tied_ids)


@pytest.mark.parametrize("config", [AdamWConfig(), MuonConfig()])
def test_it_is_updated_once_and_does_not_decay(config):
    tied, _ = pair()
    optimizer = Optimizer(tied, config, 1e-2)
    assert sorted(optimizer.state_dict()) == sorted(name for name, _ in tied.named_parameters())
    (group,) = (
        group
        for group in optimizer.param_groups
        if any(p is tied.embedding.weight for p in group["params"])
    )
    assert group["weight_decay"] == 0


def test_it_is_counted_once_and_multiplied_all_the_same():
    tied, untied = model_costs(CONFIG), model_costs(replace(CONFIG, tie_embeddings=False))
    assert untied.parameters - tied.parameters == 50 * 32 == untied.parts["head"]
    assert tied.parts["head"] == 0
    assert tied.parts["embedding"] == tied.head_parameters == untied.head_parameters == 50 * 32
    assert tied.train_flops_per_token == untied.train_flops_per_token


def test_a_bundle_holds_it_once(codec, tmp_path: Path):
    config = replace(CONFIG, vocab_size=codec.vocabulary.size)
    tied = initialise(Decoder(config), 0).eval()
    Bundle(tied, codec, {}).save(tmp_path / "bundle")
    with safe_open(tmp_path / "bundle" / "model.safetensors", framework="pt") as file:
        assert "head.weight" not in set(file.keys())
    loaded = load(tmp_path / "bundle").model
    assert loaded.config == config
    assert loaded.head.weight is loaded.embedding.weight
    ids = torch.arange(9)[None]
    assert torch.equal(loaded(ids), tied(ids))
    # A description that claims a head of its own is refused, and so is the other way round.
    path = tmp_path / "bundle" / "bundle.json"
    path.write_text(path.read_text().replace('"tie_embeddings": true', '"tie_embeddings": false'))
    with pytest.raises(BundleError, match=r"missing head\.weight"):
        load(tmp_path / "bundle")
