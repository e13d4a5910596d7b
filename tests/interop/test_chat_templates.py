"""A chat template from import to generation: the bundle keeps it, and its turns end."""

import json
from pathlib import Path

import PIL.Image
import pytest
import torch
from chat import CHATML, FORMATS, tokenizer_of
from shapes import decoder_config
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import pardalis
from pardalis.bundle import Bundle, load, load_codec
from pardalis.cli.main import main
from pardalis.codec import Codec
from pardalis.documents import Document, Text
from pardalis.errors import BundleError, ConfigError, DataError
from pardalis.interop import import_model
from pardalis.interop.model import read_bundle, write_bundle
from pardalis.model import Decoder, initialise
from pardalis.tokens import Phase


@pytest.fixture(scope="module")
def images(codec, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images") / "tokenizer"
    codec.image_tokenizer.save(folder)
    return folder


def make_folder(folder: Path, name: str, **ids) -> PreTrainedTokenizerFast:
    """Write a Hugging Face folder of a small Llama; return its tokenizer with the template."""
    template, _, bos, eos, _ = FORMATS[name]
    tokenizer = tokenizer_of(name)
    number = tokenizer.token_to_id
    ids = {"bos_token_id": number(bos), "eos_token_id": number(eos)} | {
        key: [number(token) for token in tokens] for key, tokens in ids.items()
    }
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=32, intermediate_size=48,
        num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=96, **ids,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    theirs = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos)
    theirs.chat_template = template
    (folder / "template.jinja").write_text(template)
    return theirs


GREEN = PIL.Image.new("RGB", (16, 16), "green")
ASKED = [{"role": "user", "content": "What is it?"}]


@pytest.mark.parametrize("name", ["ChatML", "Llama 3", "Phi 3", "Llama 2"])
def test_a_bundle_keeps_the_template(name, images, tmp_path):
    theirs = make_folder(tmp_path / "hf", name)
    import_model(
        tmp_path / "hf", tmp_path / "a", image_tokenizer=images,
        chat_template=tmp_path / "hf" / "template.jinja",
    )  # fmt: skip
    bundle = load(tmp_path / "a")
    bundle.save(tmp_path / "b")
    write_bundle(read_bundle(tmp_path / "b"), tmp_path / "c")
    prompt = Document((Text("What is it?", "user"),))
    expected = theirs.apply_chat_template(ASKED, add_generation_prompt=True, return_dict=False)
    for folder in "abc":
        codec = load_codec(tmp_path / folder)
        assert codec.chat_template.source == FORMATS[name][0]
        assert codec.fingerprint == bundle.codec.fingerprint
        ids = codec.encode_prompt(prompt)
        assert [codec.vocabulary.foreign_ids[i] for i in ids] == expected


@pytest.mark.parametrize(
    ("name", "eos", "end"),
    [
        ("ChatML", {}, "eos"),  # the end of a turn is eos
        ("Llama 3", {}, "<|eot_id|>"),  # which config.json of a base model does not name
        ("Phi 3", {"eos_token_id": ["<|endoftext|>", "<|end|>"]}, "<|end|>"),
        ("Llama 2", {}, "eos"),
    ],
)
def test_the_token_behind_an_answer_ends_a_completion(name, eos, end, images, tmp_path):
    make_folder(tmp_path / "hf", name, **eos)
    import_model(
        tmp_path / "hf", tmp_path / "bundle", image_tokenizer=images,
        chat_template=tmp_path / "hf" / "template.jinja",
    )  # fmt: skip
    bundle = load(tmp_path / "bundle")
    vocabulary = bundle.codec.vocabulary
    if end != "eos":
        own_id = tokenizer_of(name).token_to_id(end)
        assert vocabulary.foreign_ids[vocabulary.end_turn_id] == own_id
    last = vocabulary.eos_id if end == "eos" else vocabulary.end_turn_id
    with torch.no_grad():  # a model that says one word, then that token, then the word again
        owl = vocabulary.text_id(bundle.codec.text_tokenizer.encode("owl")[-1])
        for weight in bundle.model.parameters():
            weight.fill_(weight.ndim == 1)  # of norms
        bundle.model.embedding.weight[:, 0] = 1
        bundle.model.embedding.weight[owl, :2] = torch.tensor([-1.0, 1.0])
        bundle.model.head.weight[last, 1] = 5
        bundle.model.head.weight[owl, 0] = 5
    response = pardalis.generate(bundle, ASKED, mode="text", max_new_tokens=20)
    assert response.reason == ("eos" if end == "eos" else "turn")
    assert [s.role for s in response.segments] == ["assistant"]
    assert response.usage.completion_tokens == 2 and response.text.strip()


def test_both_turns_and_images_in_a_conversation(images, tmp_path):
    """Prompt, image, answer, and the next turn's prompt are one valid sequence."""
    make_folder(tmp_path / "hf", "ChatML")
    import_model(
        tmp_path / "hf", tmp_path / "bundle", image_tokenizer=images,
        chat_template=tmp_path / "hf" / "template.jinja",
    )  # fmt: skip
    bundle = load(tmp_path / "bundle")
    options = {"mode": "image", "guidance": 2.0, "image_guidance": 1.2}
    drawn = pardalis.generate(bundle, ["An owl", GREEN], chat=True, **options)
    assert len(drawn.images) == 1 and drawn.images[0].role == "assistant"
    more = Document((Text("An owl", "user"), *drawn.segments, Text("And now?", "user")))
    assert pardalis.generate(bundle, more, mode="text", max_new_tokens=5).usage.prompt_tokens > 20
    ids = bundle.codec.encode_prompt(more)
    assert bundle.codec.grammar.state_after(ids).phase is Phase.TEXT
    scores = pardalis.score(bundle, [(more, "yes"), (more, "no")])
    assert len(scores) == 2


def test_bad_templates_are_refused_in_a_sentence(images, tmp_path):
    make_folder(tmp_path / "hf", "ChatML")
    out = tmp_path / "bundle"
    for content, error, match in (
        (b"{% for", BundleError, "^The chat template cannot be read: "),
        (b"{{ raise_exception('No.') }}", DataError, "does not take this conversation: No"),
        (b"\xff\xfe\x00", ConfigError, "`chat_template` names .* which cannot be read"),
    ):
        (tmp_path / "t.jinja").write_bytes(content)
        with pytest.raises(error, match=match):
            import_model(
                tmp_path / "hf", out, image_tokenizer=images, chat_template=tmp_path / "t.jinja"
            )
        assert not out.exists()
    with pytest.raises(ConfigError, match="cannot be read"):
        import_model(tmp_path / "hf", out, image_tokenizer=images, chat_template=tmp_path / "none")


def test_a_bundle_with_a_broken_template_still_generates_text(images, tmp_path):
    make_folder(tmp_path / "hf", "ChatML")
    import_model(tmp_path / "hf", tmp_path / "bundle", image_tokenizer=images)
    (tmp_path / "bundle" / "chat_template.jinja").write_text("{% for")
    bundle = load(tmp_path / "bundle")
    assert pardalis.generate(bundle, "owl", mode="text", max_new_tokens=3).usage
    with pytest.raises(BundleError, match="chat template cannot be read"):
        pardalis.generate(bundle, "owl", chat=True)
    (tmp_path / "bundle" / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(BundleError, match=r"chat_template\.jinja cannot be read"):
        load(tmp_path / "bundle")
    description = json.loads((tmp_path / "bundle" / "bundle.json").read_text())
    (tmp_path / "bundle" / "chat_template.jinja").unlink()
    (tmp_path / "bundle" / "bundle.json").write_text(json.dumps(description | {"adds_bos": 0}))
    with pytest.raises(BundleError, match="adds_bos 0; it must be true or false"):
        load(tmp_path / "bundle")


def test_documents_begin_as_the_tokenizer_says(codec, tmp_path):
    """``adds_bos`` is kept, and generation, guidance and scores work without bos."""
    parts = (codec.vocabulary, codec.text_tokenizer, codec.image_tokenizer)
    plain = Codec(*parts, adds_bos=False)
    config = decoder_config(
        vocab_size=codec.vocabulary.size, context=48, d_model=32, n_layers=1, n_heads=4,
        n_kv_heads=2, d_ff=64,
    )  # fmt: skip
    Bundle(initialise(Decoder(config), 0).eval(), plain, {}).save(tmp_path / "bundle")
    bundle = load(tmp_path / "bundle")
    assert not bundle.codec.adds_bos and bundle.codec.grammar.opening == []
    options = {"mode": "image", "guidance": 2.0, "image_guidance": 1.2, "max_images": 2}
    drawn = pardalis.generate(bundle, "owl", **options)
    assert len(drawn.images) == 2
    request = pardalis.inference.to_request(bundle, "owl", None, **options)
    slow = pardalis.inference.generate_reference(bundle.model, bundle.codec.grammar, request)
    codes = bundle.codec.grammar.codes(slow)
    fast = bundle.codec.image_tokenizer.images_of(torch.tensor(codes).reshape(2, -1))
    assert [i.source.tobytes() for i in drawn.images] == [image.tobytes() for image in fast]
    assert pardalis.generate(bundle, "", mode="text", max_new_tokens=3).usage.prompt_tokens == 1
    [score] = pardalis.score(bundle, [("owl", "fox")])
    assert len(score.log_probs) == len(codec.text_tokenizer.encode("fox"))


def test_show_tells_of_the_template(images, tmp_path, capsys):
    make_folder(tmp_path / "hf", "ChatML")
    arguments = ["import", tmp_path / "hf", "-o", tmp_path / "b", "--image-tokenizer", images]
    template = tmp_path / "hf" / "template.jinja"
    assert main([*map(str, arguments), "--chat-template", str(template)]) == 0
    capsys.readouterr()
    assert main(["show", "bundle", str(tmp_path / "b")]) == 0
    assert "chat template its own" in capsys.readouterr().out
    assert main(["show", "template", str(tmp_path / "b"), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["chat_template"] == CHATML
    assert shown["example"].endswith("user\nAre you sure?<|im_end|>\n<|im_start|>assistant\n")
    (tmp_path / "b" / "chat_template.jinja").unlink()
    assert main(["show", "template", str(tmp_path / "b")]) == 0
    assert "no chat template: end_turn separates the turns" in capsys.readouterr().out
