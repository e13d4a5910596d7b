"""A model that exists gets more tokens, and does what it did with the old ones."""

from dataclasses import replace

import pytest
import torch

import pardalis
from pardalis.bundle import Bundle
from pardalis.documents import Document, Text
from pardalis.errors import ConfigError
from pardalis.interop import NewRows, extend_vocabulary
from pardalis.model import Decoder, initialise


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def bundle(request, tiny_config, codec) -> Bundle:
    config = replace(tiny_config, vocab_size=codec.vocabulary.size, tie_embeddings=request.param)
    model = initialise(Decoder(config), 0).bfloat16().eval()
    return Bundle(model, codec, {"recipe": "own"}, "# Licences\n")


@torch.no_grad()
def test_old_tokens_stay_and_new_ones_get_rows(bundle, tmp_path):
    before = {name: t.clone() for name, t in bundle.model.state_dict().items()}
    n_old = bundle.codec.vocabulary.size
    longer = extend_vocabulary(bundle, ["sep", "mask"], {"depth": 5}, writable=["sep"])
    assert all(torch.equal(t, before[name]) for name, t in bundle.model.state_dict().items())
    assert bundle.codec.vocabulary.size == bundle.model.config.vocab_size == n_old
    vocabulary = longer.codec.vocabulary
    assert len(vocabulary.modalities["depth"]) == 5
    n_new = vocabulary.size - n_old
    assert 5 <= n_new <= 7  # unused ids become special ones first
    assert longer.model.config == replace(bundle.model.config, vocab_size=vocabulary.size)
    after = longer.model.state_dict()
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        assert after[name].dtype == torch.bfloat16
        assert torch.equal(after[name][: len(tensor)], tensor), name
    new = longer.model.head.weight[n_old:].float()
    assert len(new.unique(dim=0)) == n_new
    assert new.abs().max() < bundle.model.head.weight.float().abs().max()
    ids = torch.arange(8, 30)[None]
    torch.testing.assert_close(longer.model(ids)[..., :n_old], bundle.model(ids))
    document = Document((Text("An owl"),))
    assert longer.codec.encode(document).ids.tolist() == bundle.codec.encode(document).ids.tolist()
    longer.save(tmp_path / "bundle")
    loaded = pardalis.load(tmp_path / "bundle")
    assert loaded.codec.vocabulary == vocabulary
    assert loaded.made_by == {"recipe": "own"}
    assert loaded.licences == "# Licences\n"


def test_unused_ids_keep_their_rows(bundle):
    n_unused = len(bundle.codec.vocabulary.unused)
    assert n_unused
    longer = extend_vocabulary(bundle, ["sep"])
    assert longer.model.config == bundle.model.config
    assert torch.equal(longer.model.embedding.weight, bundle.model.embedding.weight)


def test_the_seed_and_the_kind_of_new_rows_are_options(bundle):
    def rows(**options) -> torch.Tensor:
        longer = extend_vocabulary(bundle, modalities={"depth": 4}, new_rows=NewRows(**options))
        return longer.model.embedding.weight[-4:]

    assert torch.equal(rows(seed=1), rows(seed=1))
    assert not torch.equal(rows(seed=1), rows(seed=2))
    assert rows(init="normal").float().std() > 10 * rows(init="mean").float().std()


def test_a_name_that_is_taken_is_refused(bundle):
    with pytest.raises(ConfigError, match="has two entries 'bos'"):
        extend_vocabulary(bundle, ["bos"])
