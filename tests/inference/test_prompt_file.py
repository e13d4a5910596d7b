"""A file of prompts into a folder: options of lines, errors, and what a resumed run keeps."""

import json

import numpy as np
import PIL.Image
import pytest
from shapes import changed

from pardalis.bundle import Bundle
from pardalis.codec import Codec
from pardalis.documents import Text
from pardalis.errors import ConfigError, RequestError
from pardalis.inference import Engine, EngineConfig, Mask, PromptFile, generate_many, infill_many
from pardalis.inference import prompt_file as prompt_file_module
from pardalis.model import Decoder, initialise
from pardalis.tokens import END_MASK, mask_names


@pytest.fixture
def run(bundle, tmp_path, monkeypatch):
    """Complete a file of prompts in an empty working folder; return the summary."""
    monkeypatch.chdir(tmp_path)

    def call(name="prompts.jsonl", max_slots=4, **options):
        with Engine(bundle, EngineConfig(max_slots=max_slots)) as engine:
            path, folder = tmp_path / name, tmp_path / "completions"
            return PromptFile(engine, path, folder, **options).run()

    return call


@pytest.fixture
def completions(tmp_path):
    return tmp_path / "completions" / "completions.jsonl"


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_jsonl(path, *lines):
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines))


def test_a_text_file_has_a_prompt_on_each_line(run, bundle, tmp_path, completions):
    (tmp_path / "prompts.txt").write_text("owl\n\nfox\r\nAn owl sat\n")
    summary = run("prompts.txt", mode="image", seed=3)
    assert (summary.requests, summary.failed, summary.images, summary.tokens) == (3, 0, 3, 18)
    found = records(completions)
    assert [record["index"] for record in found] == [0, 1, 2]
    assert {(record["reason"], record["tokens"]) for record in found} == {("images", 6)}
    expected = generate_many(bundle, ["owl", "fox", "An owl sat"], mode="image", seed=3)
    for record, document in zip(found, expected, strict=True):
        [segment] = record["completion"]
        image = np.asarray(PIL.Image.open(completions.parent / segment["image"]))
        assert (image == np.asarray(document.images[0].source)).all()


def test_lines_have_options_and_errors_of_their_own(run, tmp_path, completions):
    PIL.Image.new("RGB", (20, 20), "red").save(tmp_path / "red.png")
    (tmp_path / "torn.png").write_bytes(b"torn")
    good = [
        {"prompt": "owl", "mode": "image", "max_images": 2, "seed": 7},
        {"prompt": ["what", {"image": "red.png"}], "mode": "text", "max_new_tokens": 3},
        {"prompt": [{"text": "owl"}], "max_new_tokens": 4, "temperature": 1, "chat": True},
        {"prompt": "owl", "mode": "image", "contrastive_alpha": 0.1, "contrastive_k": 3},
        {"prompt": "owl", "mode": "image", "guidance": 3, "image_guidance": 1.5},
        {"prompt": "owl", "max_new_tokens": None, "max_images": 0, "image_guidance": None},
    ]
    bad = [
        ("{", "The line is not JSON: Expecting property name enclosed in double quotes at"),
        ({"text": "owl"}, 'The line must be an object with a "prompt"'),
        ({"prompt": "owl", "colour": 1}, "Unknown key 'colour'; known keys are"),
        ({"prompt": "owl", "temprature": 1}, "did you mean 'temperature'?"),
        ({"prompt": "owl", "mode": "sing"}, "mode must be one of 'text', 'image', 'interleaved'"),
        ({"prompt": "owl", "max_new_tokens": 2.5}, "max_new_tokens must be of type int, got 2.5"),
        ({"prompt": "owl", "chat": 1}, "chat must be of type bool, got 1"),
        ({"prompt": "owl", "contrastive_alpha": [1]}, "contrastive_alpha must be of type float"),
        ({"prompt": "owl", "temperature": True}, "temperature must be of type float, got True"),
        ({"prompt": "owl", "temperature": -1}, "temperature must be 0 or more, got -1.0"),
        ({"prompt": "owl", "image_top_k": -1}, "image_top_k must be"),
        ({"prompt": [{"image": "blue.png"}]}, "The image 'blue.png' is not a file in"),
        ({"prompt": [{"image": "torn.png"}]}, "torn.png is not an image"),
        ({"prompt": [3]}, "The prompt must be a text or a list of texts"),
        ({"prompt": "x" * 60}, "has 61 tokens, which fills the model's context of 40"),
        ('{"prompt": "\\ud800"}', "half of a surrogate pair"),
        ('{"prompt": "owl", "mode": "\\ud800"}', "mode must be one of"),
        ('{"prompt": "owl", "guidance": 1e999}', "guidance must be a number from"),
        ('{"prompt": "owl", "guidance": 1' + "0" * 400 + "}", "guidance is too large"),
    ]
    write_jsonl(tmp_path / "prompts.jsonl", *good, *(line for line, _ in bad))
    summary = run(max_slots=3, guidance=2.0)
    assert (summary.requests, summary.failed) == (len(good) + len(bad), len(bad))
    found = records(completions)
    assert [record["index"] for record in found] == list(range(len(good) + len(bad)))
    for record, (_, message) in zip(found[len(good) :], bad, strict=True):
        assert message in record["error"]
        assert record["error"].startswith(f"prompts.jsonl:{record['index'] + 1}: ")
    generated = [record["completion"] for record in found[: len(good)]]
    assert generated[0] == [{"image": "images/000000-0.png"}, {"image": "images/000000-1.png"}]
    assert all("text" in segment for segment in generated[1])
    assert found[2]["tokens"] <= 4


def test_a_resumed_run_completes_what_failed_changed_or_was_cut_off(
    run, tmp_path, completions, monkeypatch
):
    lines = [{"prompt": "owl"}, {"prompt": "x" * 60}, {"prompt": "fox"}, {"prompt": "cat"}]
    write_jsonl(tmp_path / "prompts.jsonl", *lines)
    assert run(max_new_tokens=5).failed == 1
    before = records(completions)
    completions.write_text(completions.read_text()[:-30])  # killed while it wrote the last line
    lines[1] = {"prompt": "mended"}
    write_jsonl(tmp_path / "prompts.jsonl", *lines)
    prompts = []
    to_request = prompt_file_module.to_request

    def watched(bundle, parts, config, **more):
        prompts.append(parts)
        return to_request(bundle, parts, config, **more)

    monkeypatch.setattr(prompt_file_module, "to_request", watched)
    assert run(max_new_tokens=5).unchanged == 2
    assert prompts == [[], [Text("mended")], [Text("cat")]]  # the first checks the options
    after = records(completions)
    assert [record["index"] for record in after] == [0, 1, 2, 3]
    assert [after[i] for i in (0, 2, 3)] == [before[i] for i in (0, 2, 3)]
    with pytest.raises(ConfigError, match="holds completions of another bundle or with other opt"):
        run(max_new_tokens=6)
    with pytest.raises(ConfigError, match="holds completions of another bundle or with other opt"):
        run(max_new_tokens=5, bundle_path=tmp_path)
    assert records(completions) == after


def test_completions_are_appended_as_they_finish(run, tmp_path, completions, monkeypatch):
    """An interruption loses nothing that was completed."""
    prompts = ({"prompt": p} for p in ("owl", "fox", "cat", "oak"))
    write_jsonl(tmp_path / "prompts.jsonl", *prompts)
    to_request = prompt_file_module.to_request

    def interrupted(bundle, parts, config, **more):
        if parts == [Text("oak")]:
            raise KeyboardInterrupt
        return to_request(bundle, parts, config, **more)

    monkeypatch.setattr(prompt_file_module, "to_request", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(max_slots=1, max_new_tokens=3)
    assert 1 <= len(records(completions)) < 4
    monkeypatch.setattr(prompt_file_module, "to_request", to_request)
    assert run(max_slots=1, max_new_tokens=3).unchanged >= 1
    assert [record["index"] for record in records(completions)] == [0, 1, 2, 3]


def test_a_folder_of_an_older_version_is_refused(run, tmp_path):
    write_jsonl(tmp_path / "prompts.jsonl", {"prompt": "owl"})
    folder = tmp_path / "completions"
    folder.mkdir()
    (folder / "answers.jsonl").write_text('{"index": 0, "prompt": "5f0c", "answer": []}\n')
    with pytest.raises(ConfigError, match=r"answers\.jsonl, which an older version wrote; choose"):
        run(max_new_tokens=3)
    assert [path.name for path in folder.iterdir()] == ["answers.jsonl"]


def test_guidance_of_all_lines_says_nothing_of_lines_without_images(run, tmp_path, completions):
    lines = [{"prompt": "owl"}, {"prompt": "fox", "mode": "image"}]
    write_jsonl(tmp_path / "prompts.jsonl", *lines)
    assert run(mode="text", guidance=2.0, max_new_tokens=8).failed == 0
    found = ["image" in record["completion"][0] for record in records(completions)]
    assert found == [False, True]


def test_options_that_fit_no_line_are_refused_before_anything_is_written(run, tmp_path):
    write_jsonl(tmp_path / "prompts.jsonl", {"prompt": "owl"})
    with pytest.raises(RequestError, match="guidance must be a number"):
        run(mode="text", guidance=float("nan"))
    assert not (tmp_path / "completions").exists()


def test_a_folder_without_completions_takes_other_options(run, tmp_path):
    write_jsonl(tmp_path / "prompts.jsonl", {"prompt": "x" * 60})
    assert run().failed == 1
    write_jsonl(tmp_path / "prompts.jsonl", {"prompt": "owl"})
    assert run(max_new_tokens=3).failed == 0


def test_a_file_of_prompts_may_begin_with_a_byte_order_mark(run, tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "owl"}\n', encoding="utf-8-sig")
    assert run(max_new_tokens=3).failed == 0


@pytest.mark.parametrize(
    "damage",
    [
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b"3",
        b'{"index": [1], "prompt": "", "completion": []}',
        b'{"index": 0, "prompt": {}, "completion": []}',
        b'{"index": 0, "prompt": "DIGEST", "completion": 3}',
        b'{"index": 0, "prompt": "DIGEST", "completion": [{"text": "\xc3"}]}',
        b'{"index": 0, "prompt": "DIGEST", "completion": [{"text": "\\ud800"}]}',
        b'{"index": true, "prompt": "DIGEST", "completion": []}',
        b'{"index": 0, "prompt": "DIGEST", "completion": [{"image": "images/none.png"}]}',
    ],
    ids=range(10),
)
def test_damaged_records_are_completed_again(run, tmp_path, completions, damage):
    (tmp_path / "prompts.txt").write_text("owl\nfox\n")
    run("prompts.txt", max_new_tokens=3)
    digest = records(completions)[0]["prompt"].encode()
    first, second = completions.read_bytes().splitlines()
    completions.write_bytes(damage.replace(b"DIGEST", digest) + b"\n" + second + b"\n")
    assert run("prompts.txt", max_new_tokens=3).unchanged == 1
    assert completions.read_bytes().splitlines() == [first, second]


@pytest.mark.parametrize("content", [b"\xff", b"", b"{"])
def test_unreadable_settings_are_refused(run, tmp_path, completions, content):
    (tmp_path / "prompts.txt").write_text("owl\n")
    run("prompts.txt", max_new_tokens=3)
    (completions.parent / "settings.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"settings cannot be read from .*settings\.json"):
        run("prompts.txt", max_new_tokens=3)


def test_an_image_that_was_replaced_is_completed_again(run, tmp_path, completions):
    for colour in ("red", "blue"):
        PIL.Image.new("RGB", (20, 20), colour).save(tmp_path / f"{colour}.png")
    lines = ({"prompt": [{"image": f"{c}.png"}]} for c in ("red", "blue"))
    write_jsonl(tmp_path / "prompts.jsonl", *lines)

    def unchanged():
        return run(mode="image", max_images=1).unchanged

    assert [unchanged(), unchanged()] == [0, 2]
    before = records(completions)
    PIL.Image.new("RGB", (20, 20), "green").save(tmp_path / "red.png")
    assert unchanged() == 1
    after = records(completions)
    assert [a["prompt"] == b["prompt"] for a, b in zip(before, after, strict=True)] == [False, True]
    (completions.parent / "images" / "000001-0.png").unlink()
    assert [unchanged(), unchanged()] == [1, 2]


def test_stop_strings_and_log_probabilities_of_lines(run, tmp_path, completions):
    options = {"prompt": "An owl", "mode": "text", "temperature": 1.5, "seed": 1}
    write_jsonl(tmp_path / "prompts.jsonl", options)
    run()
    [[segment]] = [record["completion"] for record in records(completions)]
    text = segment["text"]
    completions.unlink()
    lines = [options | {"stop": [text[3:5]]}, options | {"logprobs": 2, "max_new_tokens": 4}]
    write_jsonl(tmp_path / "prompts.jsonl", *lines, options | {"stop": "owl"})
    assert run().failed == 1
    stopped, reported, bad = records(completions)
    assert stopped["completion"] == [{"text": text[:3]}]
    assert stopped["reason"] == "stop"
    assert "logprobs" not in stopped
    assert [len(token["top"]) for token in reported["logprobs"]] == [2] * reported["tokens"]
    assert bad["error"].endswith("stop must be a list, got 'owl'.")
    assert run().unchanged == 2


def test_a_folder_from_before_an_option_resumes(run, tmp_path, completions):
    (tmp_path / "prompts.txt").write_text("owl\n")
    run("prompts.txt", max_new_tokens=3)
    path = completions.parent / "settings.json"
    settings = json.loads(path.read_text())
    del settings["options"]["stop"], settings["options"]["logprobs"]
    path.write_text(json.dumps(settings))
    assert run("prompts.txt", max_new_tokens=3).unchanged == 1
    path.write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match="with other options"):
        run("prompts.txt", max_new_tokens=3, stop=("owl",))


# ── lines with masks ─────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def infills(bundle):
    """A model whose vocabulary has masks."""
    names = [*mask_names(3), END_MASK]
    vocabulary = bundle.codec.vocabulary.extended(names, writable=[END_MASK])
    codec = Codec(vocabulary, bundle.codec.text_tokenizer, bundle.codec.image_tokenizer)
    config = changed(bundle.model.config, vocab_size=vocabulary.size, context=64)
    return Bundle(initialise(Decoder(config), 3).eval(), codec, {})


def test_lines_with_masks_are_filled_in(infills, tmp_path):
    """As infill_many fills them, each in its place beside lines that are continued."""
    PIL.Image.new("RGB", (16, 16), "red").save(red := tmp_path / "red.png")
    lines = [
        {"prompt": ["An ", {"mask": True}, " sat", {"mask": "text"}], "seed": 5},
        {"prompt": "owl", "seed": 5},
        {"prompt": [{"mask": "image"}, "owl"], "seed": 5},
        {"prompt": ["owl", {"mask": {"image": "red.png", "rows": [0.5, 1]}}], "seed": 5},
        {"prompt": {"mask": "any"}, "seed": 5},
    ]
    write_jsonl(tmp_path / "prompts.jsonl", *lines)
    out, how = tmp_path / "out", {"temperature": 1.0, "max_new_tokens": 6}
    with Engine(infills, EngineConfig(max_slots=2)) as engine:
        summary = PromptFile(engine, tmp_path / "prompts.jsonl", out, **how).run()
        again = PromptFile(engine, tmp_path / "prompts.jsonl", out, **how).run()
    assert (summary.failed, again.unchanged) == (0, 5)
    found = records(out / "completions.jsonl")
    [text], [first] = found[1]["completion"], generate_many(infills, ["owl"], seed=5, **how)
    assert (text, "filled" in found[1]) == ({"text": first.text}, False)
    masked = [
        ["An ", Mask(), " sat", Mask()],
        [Mask("image"), "owl"],
        ["owl", Mask(image=red, rows=(0.5, 1.0))],
        [Mask("any")],
    ]

    def shown(segments):
        return [each.get("text", each.get("image")) for each in segments]

    for prompt, record in zip(masked, [found[0], *found[2:]], strict=True):
        [expected] = infill_many(infills, [prompt], seed=5, **how)
        names = [f"images/{record['index']:06}-{n}.png" for n in range(9)]
        images = iter(names)
        named = {id(s): getattr(s, "text", None) or next(images) for s in expected.segments}
        assert shown(record["completion"]) == list(named.values())
        assert [shown(each) for each in record["filled"]] == [
            [s.text if isinstance(s, Text) else named[id(s)] for s in each.segments]
            for each in expected.filled
        ]
        assert (record["reason"], record["tokens"]) == (
            expected.reason,
            expected.usage.completion_tokens,
        )
        for name, image in zip(names, expected.images, strict=False):
            pixels = np.asarray(PIL.Image.open(out / name))
            assert (pixels == np.asarray(image.source)).all()


def test_masks_as_mappings_in_python(infills):
    [one] = infill_many(infills, [["An ", {"mask": True}, " sat"]], max_new_tokens=4)
    [two] = infill_many(infills, [["An ", Mask(), " sat"]], max_new_tokens=4)
    assert (one, one.filled) == (two, two.filled)


def test_masks_that_cannot_be_filled(run, infills, tmp_path):
    PIL.Image.new("RGB", (16, 16), "red").save(tmp_path / "red.png")
    bad = [
        ({"mask": False}, 'A mask is {"mask": true}, {"mask": "text"}'),
        ({"mask": True, "rows": [0, 1]}, 'A mask is {"mask": true}'),
        ({"mask": "video"}, "A mask holds 'text', 'image' or 'any', got 'video'"),
        ({"mask": {"image": "blue.png"}}, "The image 'blue.png' is not a file in"),
        ({"mask": {"image": "red.png", "rows": [1, 0]}}, "The rows of a mask must be two numbers"),
        ({"mask": {"image": 3}}, "The prompt must be a text or a list of texts"),
        ({"mask": {"rows": [0, 1]}}, "A mask is"),
        ({"mask": {"image": "red.png", "colour": 1}}, "A mask is"),
    ]
    lines = [{"prompt": ["owl", part]} for part, _ in bad]
    lines += [{"prompt": ["owl", {"mask": True}], "mode": "image"}]
    lines += [{"prompt": ["owl" * 40, {"mask": True}]}]
    write_jsonl(tmp_path / "prompts.jsonl", *lines)
    with Engine(infills) as engine:
        PromptFile(engine, tmp_path / "prompts.jsonl", tmp_path / "out").run()
    errors = [record["error"] for record in records(tmp_path / "out" / "completions.jsonl")]
    messages = [message for _, message in bad]
    messages += ["mode does not apply to infilling", "with its masks, which fill the model's"]
    for error, message in zip(errors, messages, strict=True):
        assert message in error
    write_jsonl(tmp_path / "prompts.jsonl", {"prompt": ["owl", {"mask": True}]})
    assert run().failed == 1  # a model without masks
    [record] = records(tmp_path / "completions" / "completions.jsonl")
    assert "has not learnt to infill" in record["error"]
