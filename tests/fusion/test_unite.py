"""Parents with different tokens: one vocabulary, and a row from one parent for each token."""

import dataclasses

import pytest
import torch
from parents import in_memory, model_of, weights_of

from pardalis.codec import Codec
from pardalis.errors import BundleError
from pardalis.fusion import UniformConfig, WidthConfig
from pardalis.fusion.parents import check_same_vocabulary
from pardalis.fusion.vocabulary import by_modality, union_of, united, united_apart
from pardalis.tokens import Vocabulary, train_text_tokenizer
from pardalis.vq import ImageTokenizer

TABLES = ("embedding.weight", "head.weight")


def codec_with(codec, *, text=None, n_codes=None, special=(), writable=(), modalities=None):
    """Return a codec that differs in its text tokenizer, codes or names."""
    text_tokenizer = text or codec.text_tokenizer
    images = codec.image_tokenizer
    if n_codes is not None:
        images = ImageTokenizer(dataclasses.replace(images.config, n_codes=n_codes)).eval()
        for parameter in images.parameters():
            torch.nn.init.constant_(parameter, 0.5)
    vocabulary = Vocabulary.build(images.config.n_codes, text_tokenizer.size)
    vocabulary = vocabulary.extended(special, modalities, writable)
    return Codec(vocabulary, text_tokenizer, images)


@pytest.fixture(scope="module")
def other_text():
    return train_text_tokenizer(["Three bears and a wolf went to sea."], 290)


@pytest.fixture(scope="module")
def apart(codec, other_text):
    """Two parents with nothing in common but the special ids."""
    image = codec_with(codec, text=other_text, n_codes=48, special=["sep"], writable=["sep"])
    return in_memory(codec, 1), in_memory(image, 2)


def rows(parent, name, ids):
    return parent.tensors[name].read()[list(ids)]


def test_text_is_of_the_text_parent_and_images_of_the_image_parent(apart):
    text, image = apart
    ours, theirs = text.model.vocabulary, image.model.vocabulary
    both = united(text, image)
    vocabulary = both[0].model.vocabulary
    assert (len(vocabulary.text), vocabulary.n_codes) == (len(ours.text), 48)
    assert vocabulary.writable == ("sep",)
    assert vocabulary.size == ours.size + 16  # the unused id is that of sep
    for parent in both:
        assert parent.model.vocabulary == vocabulary
        assert parent.config.vocab_size == vocabulary.size
        for name in TABLES:
            assert torch.equal(rows(parent, name, vocabulary.text), rows(text, name, ours.text))
            assert torch.equal(
                rows(parent, name, vocabulary.image), rows(image, name, theirs.image)
            )
            for special, i in vocabulary.special.items():
                of_image = special in ("begin_image", "end_image", "sep")
                source, old = (image, theirs) if of_image else (text, ours)
                expected = rows(source, name, [old.special[special]])
                assert torch.equal(rows(parent, name, [i]), expected), special


def test_the_mean_of_united_parents_has_their_rows(apart):
    both = united(*apart)
    found = weights_of(UniformConfig().merged(both, 0))
    for name in TABLES:
        assert torch.equal(found[name], both[0].tensors[name].read())
    name = "trunk.norm.weight"
    one, two = (weights_of(parent)[name] for parent in apart)
    assert torch.equal(found[name], (one + two) / 2)


def test_a_further_model_gets_the_same_rows(apart):
    text, image = apart
    ancestor = dataclasses.replace(text, folder=text.folder / "ancestor")
    *_, third = united(text, image, [ancestor])
    assert torch.equal(
        third.tensors["head.weight"].read(), united(text, image)[0].tensors["head.weight"].read()
    )


@torch.no_grad()
def test_the_halves_of_a_wide_model_keep_the_rows_of_their_parents(codec):
    """A text parent and an image parent with the same text, and images that differ."""
    text, image = in_memory(codec, 1), in_memory(codec_with(codec, n_codes=48), 2)
    both = united_apart(text, image)
    wide = model_of(WidthConfig(blocks="block_diagonal").merged(both, 0))
    vocabulary = both[0].model.vocabulary
    ours, theirs = text.model.vocabulary, image.model.vocabulary
    ids = torch.tensor([[*range(3, 12)]])
    hidden = wide.hidden(ids + vocabulary.text.start)
    text_alone = model_of(text).hidden(ids + ours.text.start)
    image_alone = model_of(image).hidden(ids + theirs.text.start)
    torch.testing.assert_close(hidden, torch.cat([text_alone, image_alone], -1))
    codes = wide.hidden(ids + vocabulary.image.start)[..., text.config.d_model :]
    torch.testing.assert_close(codes, model_of(image).hidden(ids + theirs.image.start))


def test_rows_by_modality_of_parents_with_one_vocabulary(codec):
    pair = in_memory(codec, 1), in_memory(codec, 2)
    vocabulary = codec.vocabulary
    images = [*vocabulary.image, vocabulary.begin_image_id, vocabulary.end_image_id]
    rest = [i for i in range(vocabulary.size) if i not in images]
    for name, table in by_modality(*pair).items():
        found = table.read()
        assert torch.equal(found[images], rows(pair[1], name, images))
        assert torch.equal(found[rest], rows(pair[0], name, rest))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"special": ["sep"]}, "have different vocabularies; set `unite`"),
        ({"text": True}, "have different vocabularies and text tokenizers; set `unite`"),
        ({"n_codes": 32}, "have different image tokenizers; set `unite`"),
    ],
)
def test_other_tokens_are_refused(codec, other_text, changes, message):
    if "text" in changes:
        changes = {"text": other_text}
    parents = [in_memory(codec, 1), in_memory(codec_with(codec, **changes), 2)]
    with pytest.raises(BundleError, match=message):
        check_same_vocabulary(parents)


def imported(parent, foreign_ids):
    vocabulary = dataclasses.replace(parent.model.vocabulary, foreign_ids=foreign_ids)
    return dataclasses.replace(
        parent, model=dataclasses.replace(parent.model, vocabulary=vocabulary)
    )


def test_ids_of_an_imported_tokenizer_do_not_move(apart, codec):
    text, image = apart
    size = codec.vocabulary.size
    for foreign in (range(size), (1, 0, *range(2, size))):
        with pytest.raises(
            BundleError, match="ids of an imported vocabulary, with 32 image tokens"
        ):
            union_of(imported(text, foreign), image)
    same = imported(text, (1, 0, *range(2, size)))
    with_codes = in_memory(codec_with(codec, text=train_text_tokenizer(["a"], 280)), 2)
    found = union_of(same, with_codes).vocabulary
    assert found.foreign_ids == (1, 0, *range(2, size))
    behind = dataclasses.replace(
        text.model.vocabulary,
        modalities={"text": range(8, size - 32), "image": range(size - 32, size)},
        foreign_ids=range(size),
    )
    moved = dataclasses.replace(text, model=dataclasses.replace(text.model, vocabulary=behind))
    found = union_of(moved, image).vocabulary
    assert (found.text, found.n_codes, found.size) == (behind.text, 48, size + 16)


def test_two_modalities_of_one_name(codec):
    one, two = (
        in_memory(codec_with(codec, modalities={"audio": n}), seed) for seed, n in ((1, 3), (2, 4))
    )
    with pytest.raises(BundleError, match="have the modality 'audio', with 3 and 4 tokens"):
        union_of(one, two)
    without = in_memory(codec, 3)
    found = union_of(without, two).vocabulary
    assert len(found.modalities["audio"]) == 4
