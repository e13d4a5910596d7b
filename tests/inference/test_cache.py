"""The paged cache against attention over contiguous sequences."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shapes import decoder_config

from pardalis.inference.cache import PagedCache, PassLayout, SequencePart
from pardalis.model import Decoder, initialise

CONFIG = decoder_config(
    vocab_size=40,
    context=64,
    d_model=32,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    d_ff=64,
    init_std=0.3,
)
MODEL = initialise(Decoder(CONFIG), seed=0).eval()


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_paged_sequences_equal_contiguous_ones(data):
    """Random sequences are read in random parts in one pass, from pages in any order."""
    page_size = data.draw(st.integers(1, 5))
    lengths = data.draw(st.lists(st.integers(1, 17), min_size=1, max_size=4))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    texts = [torch.randint(0, 40, (n,), generator=generator) for n in lengths]
    n_pages = [-(-n // page_size) + data.draw(st.integers(0, 1)) for n in lengths]
    order = data.draw(st.permutations(range(1, sum(n_pages) + 1)))
    pages = [[order.pop() for _ in range(n)] for n in n_pages]
    if data.draw(st.booleans()):
        pages = [sorted(p) for p in pages]
    cache = PagedCache(MODEL.cache_spec(), sum(n_pages) + 1, page_size, torch.float32, MODEL.device)
    read = [0] * len(texts)
    got: list[list[torch.Tensor]] = [[] for _ in texts]
    with torch.inference_mode():
        while any(r < n for r, n in zip(read, lengths, strict=True)):
            left = [i for i, n in enumerate(lengths) if read[i] < n]
            chosen = data.draw(st.lists(st.sampled_from(left), min_size=1, unique=True))
            parts = [data.draw(st.integers(1, lengths[i] - read[i])) for i in chosen]
            slack = data.draw(st.integers(0, 3))
            layout = PassLayout(
                cache,
                [
                    SequencePart(pages[i], n, read[i] + n + slack)
                    for i, n in zip(chosen, parts, strict=True)
                ],
            )
            spans = [(i, read[i], read[i] + n) for i, n in zip(chosen, parts, strict=True)]
            ids = torch.cat([texts[i][a:b] for i, a, b in spans])
            positions = torch.cat([torch.arange(a, b) for _, a, b in spans])
            hidden = MODEL.hidden(ids[None], positions[None], cache=layout.place(positions))[0]
            for (i, _, b), part in zip(spans, hidden.split(parts), strict=True):
                got[i].append(part)
                read[i] = b
        for text, parts in zip(texts, got, strict=True):
            expected = MODEL.hidden(text[None])[0]
            torch.testing.assert_close(torch.cat(parts), expected, atol=1e-5, rtol=1e-5)


def test_consecutive_pages_are_not_copied():
    cache = PagedCache(MODEL.cache_spec(), 6, 4, torch.float32, MODEL.device)
    layout = PassLayout(cache, [SequencePart([2, 3], 1, 7), SequencePart([3, 2], 1, 7)])
    view, copy = (layout.entries_of(cache.keys[0], number) for number in range(2))
    assert view.shape == copy.shape == (1, 2, 7, 8)
    assert view.untyped_storage().data_ptr() == cache.keys[0].untyped_storage().data_ptr()
    assert copy.untyped_storage().data_ptr() != cache.keys[0].untyped_storage().data_ptr()


def test_positions_without_a_page_write_to_page_0():
    cache = PagedCache(MODEL.cache_spec(), 3, 4, torch.float32, MODEL.device)
    layout = PassLayout(cache, [SequencePart([1], 2, 8)])
    with torch.inference_mode():
        MODEL.hidden(
            torch.tensor([[1, 2]]), torch.tensor([[0, 6]]), cache=layout.place(torch.tensor([0, 6]))
        )
    touched = cache.keys[0].flatten(1).abs().sum(1).nonzero().flatten().tolist()
    assert touched == [0, 4]
