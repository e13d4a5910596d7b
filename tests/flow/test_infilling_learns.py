"""A model of the transform ``cm3`` fills a gap by what stands behind it."""

import pytest
import torch
from shapes import decoder_config

from pardalis.data import CM3, Loader, Shards, ShardWriter, Transforms
from pardalis.data.transforms import rooms
from pardalis.inference import Request, SamplingConfig, generate_reference
from pardalis.model import Decoder, initialise
from pardalis.objectives import NextTokenConfig
from pardalis.tokens import Encoded, Grammar, Limits, Vocabulary

N = 4  # documents: token n, token N + n; nothing before token n tells it
TRANSFORMS = [CM3(form="metaseq", spans=1, max_spans=1)]
IDS = Vocabulary.build(n_codes=4, n_text=2 * N).extended(
    TRANSFORMS[0].special, writable=TRANSFORMS[0].writable
)
GRAMMAR = Grammar(IDS, codes_per_image=4)


def document(n: int) -> list[int]:
    return [IDS.bos_id, IDS.text[n], IDS.text[N + n], IDS.eos_id]


@pytest.fixture
def model(tmp_path) -> Decoder:
    writer = ShardWriter(tmp_path, IDS.size, 1000)
    for n in range(N):
        writer.add(str(n), Encoded.of(document(n)))
    writer.finish(28, codec="", rooms=rooms(TRANSFORMS, 28))
    transforms = {"a": Transforms(TRANSFORMS, GRAMMAR, "a")}
    loader = Loader({"a": Shards.open(tmp_path)}, {"a": 1.0}, 28, 4, 0, IDS.pad_id, transforms)
    torch.set_num_threads(1)
    config = decoder_config(
        vocab_size=IDS.size, context=8, d_model=32, n_layers=2, n_heads=2, d_ff=64
    )
    model, objective = initialise(Decoder(config), 0), NextTokenConfig().build({})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(80):
        loss = objective(model, loader.batch(step))
        optimizer.zero_grad()
        (loss.total / loss.count).backward()
        optimizer.step()
    return model.eval()


def test_a_gap_is_filled_by_what_stands_behind_it(model):
    limits, mask = Limits(max_new_tokens=4, max_images=0, one_gap=True), IDS.masks[0]
    filled = []
    for n in range(N):
        prompt = (IDS.bos_id, mask, IDS.text[N + n], mask)
        request = Request(prompt_ids=prompt, limits=limits, text=SamplingConfig(temperature=0.0))
        new = generate_reference(model, GRAMMAR, request)
        filled.append(new == [IDS.text[n], IDS.end_mask_id])
    assert all(filled)
