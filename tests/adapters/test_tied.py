"""A head that is tied to the embedding: it is no target, and has the rows of the embedding."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pardalis.adapters import LoRAConfig, adapter_of, install, merge, row_ids, start
from pardalis.inference import (
    EngineConfig,
    Request,
    ScoreRequest,
    TokenLoop,
    generate_ids,
    generate_reference,
)
from pardalis.model import Decoder, initialise
from pardalis.tokens import Limits, Vocabulary

IDS = Vocabulary.build(n_codes=12, n_text=20)


class TiedHead(nn.Module):
    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.embedding = (embedding,)  # in a tuple, so that it is no submodule

    @property
    def weight(self) -> Tensor:
        return self.embedding[0].weight

    def forward(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.weight)


@pytest.fixture
def tied(tiny_config) -> Decoder:
    torch.set_num_threads(1)
    model = initialise(Decoder(tiny_config), 0).eval()
    del model.head
    model.add_module("head", TiedHead(model.embedding))
    return model


def test_rows_are_trained_merged_and_served(tied, grammar):
    config, ids = LoRAConfig(rank=2, rows=("image",)), torch.randint(0, IDS.size, (2, 9))
    model = copy.deepcopy(tied)
    names = install(model, config, row_ids(config.rows, IDS))
    assert [name for name in names if name.endswith("rows")] == ["embedding.rows"]
    start(model, config, 0)
    assert torch.equal(model(ids), tied(ids))
    with torch.no_grad():
        for name in names:
            parameter = model.get_parameter(name)
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    model(ids)[:, :, 8].sum().backward()  # the logit of an image token: a row of the head
    assert model.get_parameter("embedding.rows").grad[0].abs().sum() > 0
    state = model.state_dict()
    adapter = adapter_of(config, tied, IDS, {name: state[name] for name in names})
    assert adapter.rows.keys() == {"embedding"}
    merged = merge(copy.deepcopy(tied), adapter)
    torch.testing.assert_close(merged(ids), model(ids), atol=1e-4, rtol=0)
    for text in (True, False):
        limits = Limits(max_new_tokens=25, text=text, max_images=1)
        request = Request(prompt_ids=(IDS.bos_id,), limits=limits, adapter="a")
        found = generate_ids(tied, grammar, [request], adapters={"a": adapter})
        assert found == [generate_reference(merged, grammar, request)]


def test_scores_have_the_rows(tied, grammar):
    config = LoRAConfig(targets=(), rows=("image",))
    model = copy.deepcopy(tied)
    names = install(model, config, row_ids(config.rows, IDS))
    start(model, config, 0)
    trained = {name: 2 * model.state_dict()[name] for name in names}
    adapter = adapter_of(config, tied, IDS, trained)
    merged = merge(copy.deepcopy(tied), adapter)
    a = IDS.text.start
    request = ScoreRequest(prompt_ids=(IDS.bos_id, a), continuation_ids=(a + 1, a), adapter="a")
    loop = TokenLoop(tied, grammar, EngineConfig(), {"a": adapter})
    loop.submit(request)
    found = []
    while not loop.idle:
        found += [token.log_prob for progress in loop.step() for token in progress.log_probs]
    logits = merged(torch.tensor([[IDS.bos_id, a, a + 1, a]]))[0].log_softmax(-1)
    assert found == pytest.approx([logits[1, a + 1].item(), logits[2, a].item()], abs=1e-5)
