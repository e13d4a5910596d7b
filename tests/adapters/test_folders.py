"""The folder of an adapter: what it holds, and what is refused."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from random_adapters import random_adapter
from shapes import changed as with_options

import pardalis
from pardalis.adapters import (
    DoRAConfig,
    LoRAConfig,
    base_fingerprint,
    load_adapter,
    merge,
    row_ids,
    save_adapter,
    spans_of,
)
from pardalis.adapters.peft import describe_adapter
from pardalis.adapters.rows import places_of
from pardalis.errors import BundleError, ConfigError
from pardalis.tokens import Vocabulary

CONFIG = DoRAConfig(rank=3, targets=("q", "down"), rows=("image", "bos"))
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def base(project):
    return pardalis.load(project / "base")


@pytest.fixture
def folder(project, base) -> Path:
    adapter = random_adapter(base.model, CONFIG, base.codec.vocabulary)
    save_adapter(adapter, project / "adapter", base.codec.vocabulary)
    return project / "adapter"


def changed(folder: Path, name: str, **values) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def tensors_changed(folder: Path, change) -> None:
    tensors = safetensors.torch.load_file(folder / WEIGHTS)
    change(tensors)
    safetensors.torch.save_file(tensors, folder / WEIGHTS)


def test_a_folder_is_read_as_it_was_written(folder, base):
    adapter = load_adapter(folder, base.codec.vocabulary)
    written = random_adapter(base.model, CONFIG, base.codec.vocabulary)
    assert adapter.digest == load_adapter(folder, base.codec.vocabulary).digest
    assert adapter.base == written.base == base_fingerprint(base.model)
    assert adapter.row_ids == written.row_ids
    first, second = (merge(copy.deepcopy(base.model), each) for each in (adapter, written))
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])
    description = describe_adapter(folder)
    assert description["parameters"] == adapter.n_parameters
    assert description["rows"] == len(adapter.row_ids) == base.codec.vocabulary.n_codes + 1
    assert (description["kind"], description["matrices"]) == ("dora", 4)


def test_rows_are_stored_under_the_ids_of_the_exported_model(project, base):
    """An imported vocabulary has other ids in its own files."""
    size = base.codec.vocabulary.size
    own = base.codec.vocabulary
    moved = Vocabulary(
        modalities=own.modalities, special=own.special, foreign_ids=[*range(size)][::-1]
    )
    adapter = random_adapter(base.model, CONFIG, moved)
    save_adapter(adapter, project / "moved", moved)
    named = json.loads((project / "moved" / "adapter_config.json").read_text())
    assert named["trainable_token_indices"]["lm_head"] == [
        size - 1 - i for i in row_ids(CONFIG.rows, moved)
    ]
    read = load_adapter(project / "moved", moved)
    assert read.row_ids == adapter.row_ids
    assert all(torch.equal(read.rows[name], rows) for name, rows in adapter.rows.items())


def test_the_fingerprint_is_that_of_the_weights(base):
    first = base_fingerprint(base.model)
    assert first == base_fingerprint(copy.deepcopy(base.model).bfloat16())
    assert first == base_fingerprint(copy.deepcopy(base.model).bfloat16().float())
    for name in base.model.state_dict():
        other = copy.deepcopy(base.model)
        with torch.no_grad():
            other.get_parameter(name).mul_(1.1).add_(0.1)
        assert base_fingerprint(other) != first, name


def test_an_adapter_of_another_model_is_refused(folder, base):
    adapter = load_adapter(folder, base.codec.vocabulary)
    other = copy.deepcopy(base.model)
    with torch.no_grad():
        other.trunk.norm.weight.mul_(1.1)
    with pytest.raises(BundleError, match="The adapter was trained on another model than this"):
        merge(other, adapter)
    (folder / "pardalis.json").unlink()  # as PEFT writes it: only shapes are known
    merge(other, load_adapter(folder, base.codec.vocabulary))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: shutil.rmtree(f), "No adapter at .*; give the folder of an adapter"),
        (lambda f: (f / "adapter_config.json").unlink(), "is not the folder of an adapter: it has"),
        (lambda f: (f / WEIGHTS).unlink(), f"{WEIGHTS} is missing"),
        (lambda f: changed(f, "adapter_config.json", peft_type="IA3"), "has peft_type = 'IA3', wh"),
        (lambda f: changed(f, "adapter_config.json", bias="all"), "has bias = 'all', which"),
        (lambda f: changed(f, "adapter_config.json", r=-1), "adapter: rank must be at least 1"),
        (lambda f: changed(f, "adapter_config.json", lora_alpha="x"), "alpha must be of type"),
        (lambda f: changed(f, "adapter_config.json", use_dora=False), "has lora_A, lora_B, lora_m"),
        (lambda f: changed(f, "adapter_config.json", init_lora_weights="pissa"), "= 'pissa', whi"),
        (lambda f: changed(f, "adapter_config.json", trainable_token_indices={"embed_tokens": [1]}),
         "does not say of which tokens head has rows"),
        (lambda f: changed(f, "adapter_config.json", trainable_token_indices={
            "embed_tokens": [10**9], "lm_head": [10**9]}), "names the token 1000000000, and the b"),
        (lambda f: changed(f, "pardalis.json", format_version=2), "has format version 2; this"),
        (lambda f: changed(f, "pardalis.json", base=7), "pardalis.json cannot be read"),
        (lambda f: tensors_changed(f, lambda t: t.clear()), "holds no values"),
        (lambda f: tensors_changed(f, lambda t: t.update(x=torch.ones(1))), "holds 'x', which"),
        (lambda f: tensors_changed(f, lambda t: next(iter(t.values())).fill_(torch.nan)),
         "holds NaN or infinite values"),
    ],
)  # fmt: skip
def test_what_is_no_adapter_is_refused(folder, base, change, message):
    change(folder)
    with pytest.raises(BundleError, match=message):
        load_adapter(folder, base.codec.vocabulary)


def test_an_adapter_of_other_sizes_is_refused_without_a_fingerprint(folder, base):
    (folder / "pardalis.json").unlink()
    key = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"

    def wider(tensors):
        tensors[key] = torch.zeros(3, 7)

    def deeper(tensors):
        for name in [name for name in tensors if "layers.1." in name]:
            tensors[name.replace("layers.1.", "layers.7.")] = tensors.pop(name)

    tensors_changed(folder, wider)
    with pytest.raises(BundleError, match=r"has lora_A of the shape \[3, 7\] for .*q_proj"):
        merge(base.model, load_adapter(folder, base.codec.vocabulary))
    tensors_changed(folder, deeper)
    with pytest.raises(BundleError, match=r"adapts trunk.blocks.7.* which the bundle's model does"):
        merge(base.model, load_adapter(folder, base.codec.vocabulary))


def test_ids_of_rows(vocabulary):
    assert row_ids((), vocabulary) == []
    assert row_ids(("all",), vocabulary) == [*range(vocabulary.size)]
    assert row_ids(("begin_image", "image"), vocabulary) == [5, *vocabulary.image]
    assert set(row_ids(("special",), vocabulary)) == {*vocabulary.special.values()}
    with pytest.raises(ConfigError, match="rows names 'images', which the vocabulary does not"):
        row_ids(("images",), vocabulary)
    ids = [2, 5, 6, 7, 11]
    assert spans_of(ids) == [range(2, 3), range(5, 8), range(11, 12)]
    places = places_of(torch.arange(12), spans_of(ids)).tolist()
    assert places == [ids.index(i) if i in ids else -1 for i in range(12)]


def test_rows_beside_an_embedding_norm_are_refused(project, base):
    config = LoRAConfig(rows=("image",))
    values = base.model.config
    other = type(base.model)(with_options(values, embedding_norm=True))
    with pytest.raises(ConfigError, match=r"rows cannot stand beside model.embedding.norm"):
        random_adapter(other, config, base.codec.vocabulary)
