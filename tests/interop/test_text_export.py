"""A text-only model that got image tokens is exported as one that transformers loads unchanged."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from shapes import changed, decoder_config
from text_models import CASES, PEERS, TEXTS, make_llama, peer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    ChameleonForConditionalGeneration,
    PreTrainedTokenizerFast,
)

import pardalis
from pardalis.bundle import Bundle
from pardalis.documents import Document, Text
from pardalis.errors import BundleError
from pardalis.inference import Request, SamplingConfig, generate_ids
from pardalis.interop import export_model, import_model, read_model
from pardalis.interop.text_configs import TEXT_ARCHITECTURES
from pardalis.interop.vocabulary import image_name, to_foreign
from pardalis.model import Decoder, initialise
from pardalis.tokens import Limits, Rule

# Measured: equal.
CLOSE = 1e-5
TEMPLATE = "{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"


@pytest.fixture(scope="module")
def image_tokenizer(codec, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("image") / "tokenizer"
    codec.image_tokenizer.save(folder)
    return folder


@pytest.fixture(scope="module")
def round_trip(image_tokenizer, tmp_path_factory):
    """Return a function that gives a case's folder, its bundle and the export of that."""
    made: dict[str, Path] = {}

    def folders(case: str) -> tuple[Path, Path, Path]:
        if case not in made:
            made[case] = home = tmp_path_factory.mktemp("export")
            make_llama(home / "hf", **CASES[case])
            (home / "hf" / "chat_template.jinja").write_text(TEMPLATE)
            import_model(home / "hf", home / "bundle", image_tokenizer=image_tokenizer)
            export_model(home / "bundle", home / "again", "hf")
        return made[case] / "hf", made[case] / "bundle", made[case] / "again"

    return folders


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {
        n: t for file in sorted(folder.glob("*.safetensors")) for n, t in load_file(file).items()
    }


each_case = pytest.mark.parametrize("case", CASES)


@each_case
def test_every_tensor_survives_bit_for_bit(round_trip, case):
    hf, _, again = round_trip(case)
    before, after = tensors_of(hf), tensors_of(again)
    assert before.keys() == after.keys()
    size = json.loads((hf / "config.json").read_text())["vocab_size"]
    for name, tensor in before.items():
        found = after[name]
        assert found.dtype == tensor.dtype
        if name in ("lm_head.weight", "model.embed_tokens.weight"):
            assert len(found) > size  # the rows of image tokens stay
            found = found[:size]
        assert torch.equal(found, tensor), name


@each_case
@torch.no_grad()
def test_transformers_loads_it_unchanged(compare, round_trip, case):
    hf, bundle, again = round_trip(case)
    theirs, info = AutoModelForCausalLM.from_pretrained(
        again, dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values()), info
    kind = CASES[case].get("kind", "llama")
    # A Mistral without a window is a Llama.
    assert type(theirs) is PEERS["llama" if kind == "mistral" else kind][1]
    ours = pardalis.load(bundle, dtype=torch.float32)
    foreign = torch.tensor(to_foreign(ours.codec.vocabulary))
    ids = torch.randint(0, len(foreign), (2, 20), generator=torch.Generator().manual_seed(2))
    logits = theirs.eval()(foreign[ids]).logits[..., foreign]
    compare(f"text-only, exported, {case}", "logits", ours.model(ids), logits, atol=CLOSE)
    before = peer(hf)(ids % peer(hf).config.vocab_size).logits
    after = theirs(ids % peer(hf).config.vocab_size).logits[..., : before.shape[-1]]
    compare(f"text-only, exported, {case}", "logits of old ids", after, before, atol=CLOSE)


@each_case
def test_its_tokenizer_gives_the_same_ids_and_names_the_new_ones(round_trip, case):
    hf, bundle, again = round_trip(case)
    before, after = (PreTrainedTokenizerFast.from_pretrained(folder) for folder in (hf, again))
    codec = pardalis.load(bundle).codec
    ids = codec.vocabulary
    for text in [*TEXTS, "<|im_end|> <think> </s> <|eot_id|>"]:
        assert after(text).input_ids == before(text).input_ids
        assert after.decode(after(text).input_ids) == before.decode(before(text).input_ids)
    for name, i in before.get_vocab().items():
        assert after.get_vocab()[name] == i
    assert len(after) == ids.size
    for code in (0, 31):
        assert after.convert_ids_to_tokens(to_foreign(ids)[ids.image[code]]) == image_name(code)
    assert after.chat_template == TEMPLATE
    automatic = AutoTokenizer.from_pretrained(again)
    assert automatic(TEXTS[0]).input_ids == before(TEXTS[0]).input_ids


@each_case
@torch.no_grad()
def test_greedy_text_is_that_of_transformers_on_the_export(compare, round_trip, case):
    """Token for token, where new tokens are forbidden: new roles are no text."""
    _, folder, again = round_trip(case)
    bundle = pardalis.load(folder, dtype=torch.float32)
    ids = bundle.codec.vocabulary
    theirs = AutoModelForCausalLM.from_pretrained(again, dtype=torch.float32).eval()
    foreign = to_foreign(ids)
    prompt = bundle.codec.encode_prompt(Document((Text("The owl"),)))
    allowed = bundle.codec.grammar.allowed_ids()[Rule.TEXT].nonzero()[0].tolist()
    written = {foreign[i] for i in allowed if i != ids.begin_image_id}
    generated = theirs.generate(
        torch.tensor([[foreign[i] for i in prompt]]), max_new_tokens=16, do_sample=False,
        eos_token_id=foreign[ids.eos_id], pad_token_id=foreign[ids.pad_id],
        suppress_tokens=[i for i in range(len(foreign)) if i not in written],
    )[0, len(prompt) :].tolist()  # fmt: skip
    request = Request(
        prompt_ids=tuple(prompt),
        limits=Limits(max_new_tokens=17, max_images=0),
        text=SamplingConfig(temperature=0.0),
    )
    found = generate_ids(bundle.model, bundle.codec.grammar, [request])[0][:16]
    mine = [foreign[i] for i in found]
    compare(f"text-only, exported, {case}", "greedy text", mine, generated)
    assert len(found) == 16 or found[-1] == ids.eos_id


@each_case
def test_an_export_is_imported_as_the_same_bundle(round_trip, image_tokenizer, case):
    _, bundle, again = round_trip(case)
    before = pardalis.load(bundle).codec.vocabulary
    after = read_model(again, image_tokenizer=image_tokenizer)
    assert after.vocabulary == before
    found = load_file(bundle / "model.safetensors")
    assert after.decoder.keys() == found.keys()
    for name, tensor in after.decoder.items():
        assert torch.equal(tensor.read(), found[name]), name
    assert after.chat_template == TEMPLATE


def test_another_image_tokenizer_does_not_fit_an_export(round_trip, codec, tmp_path):
    _, _, again = round_trip("Llama 2")
    path = again / "tokenizer.json"
    text = path.read_text()
    try:
        path.write_text(text.replace(image_name(31), "<other>"))
        codec.image_tokenizer.save(tmp_path / "images")
        with pytest.raises(BundleError, match="names 31 image codes already, and the `image_tok"):
            read_model(again, image_tokenizer=tmp_path / "images")
    finally:
        path.write_text(text)


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_trained_here_without_qk_norm(codec, tmp_path, tied):
    config = decoder_config(
        vocab_size=codec.vocabulary.size, context=32, d_model=32, n_layers=1, n_heads=2, d_ff=48,
        qk_norm="none", tie_embeddings=tied, embedding_norm=tied,
    )  # fmt: skip
    bundle = Bundle(initialise(Decoder(config), 0).eval(), codec, {})
    bundle.save(tmp_path / "bundle")
    export_model(tmp_path / "bundle", tmp_path / "hf", "hf")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    assert theirs.config.model_type == "llama"
    assert theirs.config.tie_word_embeddings == (tied and not config.embedding.norm)
    ids = torch.arange(8, 30)[None]
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, bundle.model(ids), rtol=0, atol=CLOSE)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    expected = [
        bundle.codec.vocabulary.bos_id,
        *codec.encode(Document((Text("An owl"),))).ids[1:-1],
    ]
    assert tokenizer("An owl").input_ids == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qk_norm": "rms_norm", "attention": {"bias": "qkv"}}, "bias is 'qkv'"),
        ({"qk_norm": "rms_norm", "attention": {"qk_norm": {"over": "heads"}}}, "over is 'heads'"),
        ({"qk_norm": "rms_norm", "norm_eps": 1e-6}, "qk_norm.eps is not model.norm.eps, 1e-06"),
        ({"qk_norm": "none", "norm_placement": "reordered"}, "residual.placement is 'reordered'"),
        ({"qk_norm": "none", "position": {"kind": "learned"}}, "position.kind is 'learned'"),
    ],
)
def test_what_no_architecture_holds_is_refused(codec, tmp_path, changes, message):
    config = decoder_config(
        **{"vocab_size": codec.vocabulary.size, "context": 32, "d_model": 32, "n_layers": 1,
           "n_heads": 2, "d_ff": 48, **changes},
    )  # fmt: skip
    Bundle(initialise(Decoder(config), 0).eval(), codec, {}).save(tmp_path / "bundle")
    with pytest.raises(BundleError, match=re.escape(message)):
        export_model(tmp_path / "bundle", tmp_path / "hf", "hf")
    assert not (tmp_path / "hf").exists()


def test_every_architecture_has_a_case():
    assert set(TEXT_ARCHITECTURES) == {case.get("kind", "llama") for case in CASES.values()}
    assert set(PEERS) == set(TEXT_ARCHITECTURES)


def test_a_tied_model_whose_file_holds_a_head(image_tokenizer, tmp_path):
    """As some savers write it; a head that differs is refused."""
    make_llama(tmp_path / "hf", tie_word_embeddings=True)
    tensors = tensors_of(tmp_path / "hf")
    file = tmp_path / "hf" / "model.safetensors"
    table = tensors["model.embed_tokens.weight"]
    save_file(tensors | {"lm_head.weight": table.clone()}, file)
    model = read_model(tmp_path / "hf", image_tokenizer=image_tokenizer)
    assert model.config.tie_embeddings
    assert "head.weight" not in model.decoder
    save_file(tensors | {"lm_head.weight": table + 1}, file)
    with pytest.raises(BundleError, match=r"tie_word_embeddings = true and a lm_head\.weight that"):
        read_model(tmp_path / "hf", image_tokenizer=image_tokenizer)


@torch.no_grad()
def test_a_tied_bundle_in_chameleons_layouts(own_bundle, tmp_path):
    """Hugging Face's holds it as it is, the release's with a copy as the head."""
    own = pardalis.load(own_bundle)
    tied = initialise(Decoder(changed(own.model.config, tie_embeddings=True)), 0).eval()
    Bundle(tied, own.codec, {}).save(tmp_path / "bundle")
    ids = torch.arange(8, 30)[None]
    for to in ("hf", "meta"):
        export_model(tmp_path / "bundle", tmp_path / to, to)
        import_model(tmp_path / to, tmp_path / f"from {to}")
        found = pardalis.load(tmp_path / f"from {to}").model
        assert found.config.tie_embeddings == (to == "hf")
        assert torch.equal(found.embedding.weight, tied.embedding.weight)
        assert torch.equal(found.head.weight, tied.embedding.weight)
        assert torch.equal(found(ids), tied(ids))
    theirs = ChameleonForConditionalGeneration.from_pretrained(tmp_path / "hf").eval()
    assert theirs.lm_head.weight is theirs.model.embed_tokens.weight
    assert torch.equal(theirs.lm_head.weight, tied.embedding.weight)
