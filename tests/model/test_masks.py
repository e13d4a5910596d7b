"""All implementations of the attention mask are equivalent."""

import itertools

import pytest
import torch

from pardalis.model import Decoder, attention_mask, document_mask, initialise
from pardalis.model.masks import PackedDocuments, attend, block_mask

# Two rows of 150: more than one block of FlexAttention, and documents that end inside of blocks.
ENDS = [[0, 3, 60, 130, 150], [0, 150]]


@pytest.fixture
def documents() -> torch.Tensor:
    numbers = torch.full((2, 150), -1)
    for row, ends in zip(numbers, ENDS, strict=True):
        for n, (start, end) in enumerate(itertools.pairwise(ends)):
            row[start:end] = n
    numbers[0, 130:] = -1  # padding
    return numbers


def heads(n_kv_heads: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, n, 150, 16) for n in (4, n_kv_heads, n_kv_heads)]
    return [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]


def test_document_boundaries_of_flattened_rows(documents):
    assert PackedDocuments(documents).lengths == [3, 57, 70, 20, 150]


@pytest.mark.parametrize("n_kv_heads", [4, 2, 1])
def test_attention_by_document_equals_masked_attention(documents, n_kv_heads):
    """In value and in gradient. Measured: 2.4e-7 of values up to 3.1; gradients 1.4e-6 of 7.4."""
    qkv = heads(n_kv_heads)
    masked, apart = (
        attend(*qkv, mask) for mask in (document_mask(documents), PackedDocuments(documents))
    )
    torch.testing.assert_close(apart, masked, rtol=0, atol=3e-6)
    upstream = torch.randn(masked.shape, generator=torch.Generator().manual_seed(1))
    gradients = [torch.autograd.grad(x, qkv, upstream) for x in (apart, masked)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-5)
    assert apart.shape == (2, 4, 150, 16)


@pytest.mark.parametrize("n_kv_heads", [4, 2])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_equals_masked_attention(documents, n_kv_heads):
    """Uncompiled, as it can run on a CPU. Measured: 5.4e-7."""
    qkv = [x.detach() for x in heads(n_kv_heads)]
    blocks = block_mask(documents)
    masked = attend(*qkv, document_mask(documents))
    torch.testing.assert_close(attend(*qkv, blocks), masked, rtol=0, atol=3e-6)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_takes_the_type_of_the_values(documents):
    """Under autocast, queries and keys come from their norm in single precision."""
    q, k, v = (x.detach() for x in heads(4))
    attended = attend(q, k, v.bfloat16(), block_mask(documents))
    expected = attend(q, k, v, document_mask(documents))
    assert attended.dtype is torch.bfloat16
    torch.testing.assert_close(attended.float(), expected, rtol=0, atol=0.05)


def test_fully_masked_blocks_are_skipped():
    """Of 4 x 4 blocks, two documents of two blocks each need three and three."""
    documents = torch.arange(512)[None] // 256
    assert block_mask(documents).sparsity() == pytest.approx(100 * (1 - 6 / 16))


def test_the_implementation_depends_on_the_device(documents):
    assert isinstance(attention_mask(documents), PackedDocuments)
    assert attention_mask(documents.to("meta")).dtype is torch.bool


def test_a_model_gives_the_same_output_for_every_implementation(tiny_config, documents):
    """Measured: 1.8e-6 of values up to 3.5."""
    model = initialise(Decoder(tiny_config), seed=0).eval()
    ids = torch.randint(
        tiny_config.vocab_size, (2, 150), generator=torch.Generator().manual_seed(0)
    )
    apart, masked = (
        model.hidden(ids, mask=form(documents)) for form in (PackedDocuments, document_mask)
    )
    torch.testing.assert_close(apart, masked, rtol=0, atol=1e-5)
    plain = model.hidden(ids)
    assert (apart[0, 3:] - plain[0, 3:]).abs().max() > 0.1
