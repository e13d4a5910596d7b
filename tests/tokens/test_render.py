from pardalis.tokens import Grammar, Vocabulary, render


def test_reads_like_a_line(text_tokenizer):
    ids = Vocabulary.build(n_codes=12, n_text=text_tokenizer.size)
    text = [ids.text.start + p for p in text_tokenizer.encode("An owl")]
    image = [ids.begin_image_id, *[ids.image.start] * 4, ids.end_image_id]
    line = render([ids.bos_id, *text, *image, ids.eos_id], Grammar(ids, 4), text_tokenizer)
    assert line == "<bos>An owl<begin_image>[4 codes]<end_image><eos>"


def test_tolerates_malformed_ids(text_tokenizer):
    ids = Vocabulary.build(n_codes=12, n_text=text_tokenizer.size)
    malformed = [
        ids.image.start, 10**6, ids.begin_image_id, ids.begin_image_id, ids.image.start,
        ids.end_image_id, ids.unk_id, -1,
    ]  # fmt: skip
    line = render(malformed, Grammar(ids, 4), text_tokenizer)
    assert line == (
        "[1 codes]<outside 1000000><begin_image><begin_image>[1 codes]<end_image><unk><outside -1>"
    )


def test_added_special_ids_have_their_names(text_tokenizer):
    ids = Vocabulary.build(12, text_tokenizer.size, special=["sep"])
    line = render([ids.bos_id, ids.special["sep"], ids.eos_id], Grammar(ids, 4), text_tokenizer)
    assert line == "<bos><sep><eos>"
