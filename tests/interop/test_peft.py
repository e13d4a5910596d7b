"""PEFT loads our adapters onto the Chameleon that an export writes, with the ids of that model."""

import copy

import peft
import pytest
import torch
from random_adapters import random_adapter
from transformers import ChameleonForConditionalGeneration

import pardalis
from pardalis.adapters import DoRAConfig, LoRAConfig, load_adapter, merge, save_adapter
from pardalis.interop import export_model
from pardalis.interop.vocabulary import to_foreign

# Names that transformers has renamed, and that of the base's file, which a local one has not.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
LOGITS = 2e-5  # measured: 6.6e-6, in logits that reach 6
CONFIGS = [
    DoRAConfig(rank=3, rows=("image", "begin_image")),
    LoRAConfig(rank=4, targets=("attention",)),
]


@pytest.mark.parametrize("config", CONFIGS, ids=["DoRA with rows", "LoRA"])
@pytest.mark.parametrize("kind", ["own", "scattered ids"])
def test_an_adapter_of_an_exported_model(
    config, kind, own_bundle, imported_bundle, compare, tmp_path
):
    folder = own_bundle if kind == "own" else imported_bundle(scattered=True)
    bundle = pardalis.load(folder)
    vocabulary = bundle.codec.vocabulary
    adapter = random_adapter(bundle.model, config, vocabulary, scale=0.05)
    save_adapter(adapter, tmp_path / "adapter", vocabulary)
    export_model(folder, tmp_path / "hf", "hf")
    peer = ChameleonForConditionalGeneration.from_pretrained(tmp_path / "hf").eval()
    theirs = peft.PeftModel.from_pretrained(peer, str(tmp_path / "adapter"))

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocabulary.size, (2, 24), generator=generator)
    ids[:, 5:9] = torch.tensor([*vocabulary.image][:4])
    foreign = torch.tensor(to_foreign(vocabulary))
    merged = merge(copy.deepcopy(bundle.model), adapter)
    with torch.no_grad():
        hidden = theirs.base_model.model.model(input_ids=foreign[ids]).last_hidden_state
        logits = theirs.base_model.model.lm_head(hidden)
        ours, plain = merged(ids), bundle.model(ids)
    compare(f"PEFT on an exported model, {kind}", "logits", ours, logits[..., foreign], atol=LOGITS)
    assert (ours - plain).abs().max() > 100 * LOGITS
    read = load_adapter(tmp_path / "adapter", vocabulary)
    assert read.digest == load_adapter(tmp_path / "adapter", vocabulary).digest
    assert read.base == adapter.base
