"""A kind of adapter from outside is a config, a layer and a line of the table."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from pardalis.adapters import (
    ADAPTERS,
    AdaptedLinear,
    Factor,
    FrozenLinear,
    LowRank,
    adapter_of,
    install,
    load_adapter,
    merge,
    save_adapter,
    start,
)
from pardalis.errors import BundleError
from pardalis.inference import Request, generate_ids, generate_reference
from pardalis.tokens import Limits, Vocabulary

IDS = Vocabulary.build(n_codes=12, n_text=20)


class IA3Linear(AdaptedLinear):
    factors: ClassVar[Mapping[str, Factor]] = {"gain": Factor("outputs", decays=False)}
    gain: nn.Parameter

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        return {"gain": torch.ones(self.out_features)}

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * self.product(x)


@dataclass(frozen=True, kw_only=True)
class IA3Config:
    """A gain for each output of a matrix (arXiv 2205.05638)."""

    kind: Literal["ia3"] = "ia3"
    targets: tuple[str, ...] = ("k", "v", "up")
    rows: tuple[str, ...] = ()
    dropout: float = 0.0
    base_dtype: str = "stored"
    factors: ClassVar[Mapping[str, Factor]] = IA3Linear.factors

    def adapted(self, linear: nn.Linear) -> IA3Linear:
        made = FrozenLinear.of(linear, IA3Linear)
        made.gain = nn.Parameter(torch.empty(made.out_features, device=made.weight.device))
        return made

    def low_rank(self, weight: Tensor, factors: Mapping[str, Tensor]) -> LowRank:
        (out, width), gain = weight.shape, factors["gain"].float()
        return LowRank(weight.new_zeros(0, width), weight.new_zeros(out, 0), gain)


@pytest.fixture
def kinds():
    with patch.dict(ADAPTERS):
        ADAPTERS.add(IA3Config)
        yield


def test_it_is_trained_stored_merged_and_served(tiny_model, grammar, tmp_path, kinds):
    config, ids = IA3Config(), torch.randint(0, IDS.size, (2, 9))
    model = copy.deepcopy(tiny_model)
    names = install(model, config)
    assert len(names) == 3 * len(model.trunk.blocks)
    start(model, config, 0)
    assert torch.equal(model(ids), tiny_model(ids))
    with torch.no_grad():
        for name in names:
            model.get_parameter(name).uniform_(0.2, 1.8)
    state = model.state_dict()
    adapter = adapter_of(config, tiny_model, IDS, {name: state[name] for name in names})
    save_adapter(adapter, tmp_path / "ia3", IDS)
    read = load_adapter(tmp_path / "ia3", IDS)
    assert read.config.kind == "ia3"
    assert read.linears.keys() == adapter.linears.keys()
    merged = merge(copy.deepcopy(tiny_model), read)
    torch.testing.assert_close(merged(ids), model(ids), atol=1e-5, rtol=0)
    request = Request(prompt_ids=(IDS.bos_id,), limits=Limits(max_new_tokens=20), adapter="a")
    found = generate_ids(tiny_model, grammar, [request], adapters={"a": read})
    assert found == [generate_reference(merged, grammar, request)]


def test_a_folder_of_a_kind_that_is_not_imported_is_refused(tiny_model, tmp_path):
    model = copy.deepcopy(tiny_model)
    names = install(model, IA3Config())
    state = model.state_dict()
    trained = {name: torch.ones_like(state[name]) for name in names}
    save_adapter(adapter_of(IA3Config(), tiny_model, IDS, trained), tmp_path / "ia3", IDS)
    with pytest.raises(BundleError, match="kind must be one of 'lora', 'dora', got 'ia3'"):
        load_adapter(tmp_path / "ia3", IDS)
