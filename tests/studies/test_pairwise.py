"""A study of two models: making its folder, reading and judging it, its report."""

import json
import os

import numpy as np
import PIL.Image
import pytest

from pardalis.cli.main import main
from pardalis.errors import BusyError, ConfigError, DataError, RequestError
from pardalis.files import exclusive
from pardalis.inference.prompt_lines import read_lines
from pardalis.studies.pairwise import Desk, Study, make_study, rater_name
from pardalis.studies.pairwise_report import _mean, report_study

PROMPTS = [
    {"prompt": "an owl", "category": "animals"},
    {"prompt": ["a fox", {"image": "fox.png"}], "category": "animals"},
    {"prompt": "a house", "category": "things"},
    {"prompt": "a ship", "category": "things"},
]


def write_jsonl(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def write_completions(folder, prompts, name):
    """Write what ``PromptFile`` writes: an answer with an image to each prompt."""
    (folder / "images").mkdir(parents=True)
    records = []
    for line in read_lines(prompts):
        images = [prompts.parent / "fox.png"] if "fox.png" in line.content else []
        image = f"images/{line.index:06}-0.png"
        PIL.Image.new("RGB", (4, 4), (line.index, ord(name), 0)).save(folder / image)
        segments = [{"text": f"{name} says {line.index}"}, {"image": image}]
        record = {"index": line.index, "prompt": line.digest(images), "completion": segments}
        records.append({**record, "reason": "end", "tokens": 3})
    write_jsonl(folder / "completions.jsonl", records)


@pytest.fixture
def made(tmp_path):
    """Prompts, and completions of two models."""
    PIL.Image.new("RGB", (4, 4), "red").save(tmp_path / "fox.png")
    write_jsonl(tmp_path / "prompts.jsonl", PROMPTS)
    for name in ("x", "y"):
        write_completions(tmp_path / name, tmp_path / "prompts.jsonl", name)
    return tmp_path


@pytest.fixture
def study(made):
    return make_study(made / "prompts.jsonl", (made / "x", made / "y"), made / "study", seed=1)


def judge(study, rater, item, a, b, choice):
    """Judge by models, not by sides."""
    shown = study.items[item]
    left, right = (a, b) if shown.left == "A" else (b, a)
    side = {shown.left: "left", shown.right: "right"}.get(choice, "same")
    return Desk(study).take(rater, item, left, right, side)


# ── making ───────────────────────────────────────────────────────────────────────────────────────


def test_a_study_has_all_that_it_needs(study, made):
    assert [item.category for item in study.items] == ["animals", "animals", "things", "things"]
    assert sorted(item.left for item in study.items) == ["A", "A", "B", "B"]
    for n, item in enumerate(study.items):
        assert item.answers["A"][0] == {"text": f"x says {n}"}
        assert item.answers["B"][0] == {"text": f"y says {n}"}
    assert len(study.images) == 9  # two a prompt, and the fox
    (made / "x").rename(made / "elsewhere")
    again = Study(study.folder)
    assert again.items == study.items
    assert all(again.image(name).startswith(b"\x89PNG") for name in again.images)


def test_the_order_is_that_of_the_seed(made):
    def order(name, seed):
        models = (made / "x", made / "y")
        study = make_study(made / "prompts.jsonl", models, made / name, seed=seed)
        return [item.left for item in study.items]

    assert order("one", 1) == order("two", 1)
    assert len({tuple(order(f"of-{seed}", seed)) for seed in range(8)}) > 1


def test_bundles_complete_the_prompts(made, codec):
    from shapes import decoder_config

    from pardalis.bundle import Bundle
    from pardalis.model import Decoder, initialise

    config = decoder_config(
        vocab_size=codec.vocabulary.size, context=96, d_model=32, n_layers=1, n_heads=2,
        n_kv_heads=2, d_ff=64, init_std=0.3,
    )  # fmt: skip
    Bundle(initialise(Decoder(config), 0).eval(), codec, {}).save(made / "tiny")
    prompts = made / "few.jsonl"
    write_jsonl(prompts, [{"prompt": "an owl", "mode": "text", "max_new_tokens": 3}])
    write_completions(made / "z", prompts, "z")
    study = make_study(prompts, (made / "tiny", made / "z"), made / "study")
    assert study.items[0].answers["B"][0] == {"text": "z says 0"}
    assert study.models == {"A": str(made / "tiny"), "B": str(made / "z")}


def test_what_cannot_become_a_study(made):
    prompts, models = made / "prompts.jsonl", (made / "x", made / "y")
    write_jsonl(made / "others.jsonl", [{"prompt": "else"}, *PROMPTS[1:]])
    with pytest.raises(DataError, match=r"x has no answer to line 1 of .*others.jsonl, or one to"):
        make_study(made / "others.jsonl", models, made / "study")
    write_jsonl(made / "fewer.jsonl", PROMPTS[:3])
    with pytest.raises(DataError, match=r"x has 4 answers and .* 3 prompts"):
        make_study(made / "fewer.jsonl", models, made / "study")
    write_jsonl(made / "wrong.jsonl", [{"prompt": "a", "category": 3}])
    with pytest.raises(RequestError, match="category must be a text, got 3"):
        make_study(made / "wrong.jsonl", models, made / "study")
    (made / "busy").mkdir()
    with exclusive(made / "busy"), pytest.raises(BusyError, match="Another process"):
        make_study(prompts, models, made / "busy")
    make_study(prompts, models, made / "study")  # what has failed before is no hindrance
    with pytest.raises(ConfigError, match="holds a study; choose another folder"):
        make_study(prompts, models, made / "study")


# ── reading and judging ──────────────────────────────────────────────────────────────────────────


def changed(study, **values):
    path = study.folder / "study.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_folder_from_elsewhere(study, tmp_path):
    with pytest.raises(DataError, match="is not the folder of a study"):
        Study(tmp_path)
    changed(study, items=[])
    with pytest.raises(DataError, match="has no items to judge"):
        Study(study.folder)
    item = {"prompt": [], "answers": {"A": [], "B": []}, "left": "A", "category": ""}
    outside = {**item, "prompt": [{"image": "../../fox.png"}]}
    for wrong in (outside, {**item, "left": "C"}, {**item, "prompt": [3]}, None):
        changed(study, items=[item, wrong])
        with pytest.raises(DataError, match="has an item 1 that is none"):
            Study(study.folder)
    changed(study, version=2)
    with pytest.raises(DataError, match="format version 2"):
        Study(study.folder)
    surrogate = '{"version": 1, "models": {"A": "\\ud800"}}'
    for text in ("{", "", surrogate, '{"a": ' + "[" * 100_000):
        (study.folder / "study.json").write_text(text)
        with pytest.raises(DataError, match="not JSON that can be read"):
            Study(study.folder)


def test_an_answer_that_links_to_another_place(made):
    image = made / "x" / "images" / "000000-0.png"
    image.unlink()
    image.symlink_to(made / "fox.png")
    with pytest.raises(DataError, match=r"000000-0.png is a link; raters are shown what lies in"):
        make_study(made / "prompts.jsonl", (made / "x", made / "y"), made / "study")


def test_a_line_with_a_wrong_option(made):
    write_jsonl(made / "wrong.jsonl", [{"prompt": "an owl", "stop": 3}])
    with pytest.raises(RequestError, match="stop"):
        make_study(made / "wrong.jsonl", (made / "x", made / "y"), made / "study")


def test_an_image_that_is_a_link(study, tmp_path):
    name = min(study.images)
    (study.folder / "images" / name).unlink()
    (study.folder / "images" / name).symlink_to(tmp_path / "fox.png")
    with pytest.raises(RequestError, match="has no image"):
        study.image(name)
    with pytest.raises(DataError, match="an image of it is missing"):
        Study(study.folder)


def test_the_last_judgement_counts_and_raters_continue(study):
    desk = Desk(study)
    desk.take("Ada", 0, "fulfils", "partially", "left")
    desk.take(" Ada ", 0, "does not", "partially", "right")
    desk.take("Bob", 2, "fulfils", "fulfils", "same")
    assert (desk.judged("Ada"), desk.judged("Bob"), desk.judged("Eve")) == ([0], [2], [])
    again = Desk(Study(study.folder))
    assert again.judged("Ada") == [0]
    found, n_damaged = study.judgements()
    assert (len(found), n_damaged) == (2, 0)
    item = study.items[0]
    assert found[0].fulfilment == {item.left: "does not", item.right: "partially"}
    assert found[0].choice == item.right


@pytest.mark.parametrize(
    "name", ["", "  ", "x" * 81, "a\nb", "a\x1b[31m", "\u202eevil", "\0", "\ud800", "a\tb"]
)
def test_names_that_are_none(study, name):
    with pytest.raises(RequestError, match="name of a rater has 1 to 80 characters"):
        Desk(study).take(name, 0, "fulfils", "fulfils", "same")
    assert not (study.folder / "judgements.jsonl").exists()


def test_names_of_people():
    assert rater_name(" Zoe\u0308 Müller ") == "Zoë Müller"
    assert rater_name("陳大文 <b>") == "陳大文 <b>"


def test_judgements_that_are_none(study):
    desk = Desk(study)
    for item in (4, -1, 10**30):
        with pytest.raises(RequestError, match=f"no item {item}; its items are 0 to 3"):
            desk.take("Ada", item, "fulfils", "fulfils", "same")
    for wrong in (("good", "fulfils", "same"), ("fulfils", "fulfils", "A B")):
        with pytest.raises(RequestError, match="It is no judgement"):
            desk.take("Ada", 0, *wrong)


def test_a_line_that_a_crash_has_cut_off(study):
    path = study.folder / "judgements.jsonl"
    judge(study, "Ada", 0, "fulfils", "fulfils", "A")
    judge(study, "Ada", 1, "fulfils", "fulfils", "A")
    path.write_bytes(path.read_bytes()[:-30])
    assert len(report_study(study)["raters"]) == 1
    assert "Damaged lines of judgements that were left out: 1." in report_study(study)["hints"]
    judge(study, "Ada", 1, "fulfils", "fulfils", "B")
    found, n_damaged = study.judgements()
    assert ([judgement.choice for judgement in found], n_damaged) == (["A", "B"], 1)


def test_a_file_of_judgements_that_is_no_file(study, tmp_path):
    path = study.folder / "judgements.jsonl"
    desk = Desk(study)
    (tmp_path / "private").write_text("")
    path.symlink_to(tmp_path / "private")
    with pytest.raises(DataError, match="not a regular file"):
        study.judgements()
    with pytest.raises(DataError, match="not a regular file"):
        desk.take("Ada", 0, "fulfils", "fulfils", "same")
    assert (tmp_path / "private").read_text() == ""
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match="not a regular file"):
        study.judgements()


def test_a_full_disk_leaves_no_half_line(study, monkeypatch):
    judge(study, "Ada", 0, "fulfils", "fulfils", "A")
    before = (study.folder / "judgements.jsonl").read_bytes()
    write = os.write
    monkeypatch.setattr(os, "write", lambda where, content: write(where, content[:9]))
    with pytest.raises(OSError, match="No space left"):
        judge(study, "Ada", 1, "fulfils", "fulfils", "A")
    assert (study.folder / "judgements.jsonl").read_bytes() == before


def test_a_study_that_was_changed_after_it_was_judged(study):
    judge(study, "Ada", 0, "fulfils", "fulfils", "A")
    changed(study, seed=5)
    with pytest.raises(DataError, match=r"judgements.jsonl:1: It is of another version of study"):
        report_study(Study(study.folder))


# ── the report ───────────────────────────────────────────────────────────────────────────────────


def test_numbers_by_hand(study):
    for rater, choices in (("Ada", "AABs"), ("Bob", "AsBA"), ("Eve", "BsBB")):
        for item, choice in enumerate(choices):
            a = "fulfils" if item < 2 or rater == "Eve" else "partially"
            judge(study, rater, item, a, "does not", "same" if choice == "s" else choice)
    report = report_study(study)
    assert (report["judged"], report["items_by_raters"], report["hints"]) == (4, {"3": 4}, [])
    assert report["raters"] == {"Ada": 4, "Bob": 4, "Eve": 4}
    a, b = report["all"]["A"], report["all"]["B"]
    # Majorities: A; same of two; B; none, and so the same.
    assert (a["wins"], a["ties"], a["losses"], a["win rate"]["value"]) == (1, 2, 1, 0.5)
    assert (b["wins"], b["ties"], b["losses"], b["win rate"]["value"]) == (1, 2, 1, 0.5)
    assert (a["fulfils"]["value"], a["partially"]["value"], b["does not"]["value"]) == (0.5, 0.5, 1)
    low, high = a["win rate"]["interval"]
    assert 0 <= low < 0.5 < high <= 1
    assert b["does not"]["interval"] == [1, 1]
    assert report["categories"]["animals"]["A"]["win rate"]["value"] == 0.75
    assert report["categories"]["things"]["A"]["win rate"]["value"] == 0.25
    assert 0.5 < report["alpha"]["fulfilment, nominal"] < 1
    assert report == report_study(study)


def test_chameleons_own_numbers_give_its_win_rate():
    """435 wins, 362 ties and 251 losses against Gemini+ are 58.8 %."""
    rate = _mean([251, 362, 435], np.array([0, 0.5, 1]), 0, "all")
    assert rate["value"] == pytest.approx(0.588, abs=5e-4)
    low, high = rate["interval"]
    assert high - low == pytest.approx(2 * 1.96 * 0.0122, rel=0.1)  # of a normal distribution


def test_one_rater_and_none(study, capsys):
    report = report_study(study)
    assert (report["judged"], report["all"]["A"]["win rate"]["value"]) == (0, None)
    assert main(["study", "report", str(study.folder)]) == 0
    assert "Items that nobody has judged yet: 4." in capsys.readouterr().out
    judge(study, "Ada", 0, "fulfils", "fulfils", "A")
    assert main(["study", "report", str(study.folder)]) == 0
    out = capsys.readouterr().out
    assert "Items with one rater: 1; agreement needs two" in out
    assert "Krippendorff's alpha, choice, ordinal: -" in out
    assert main(["study", "report", str(study.folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["raters"] == {"Ada": 1}


def test_the_command_makes_a_study(made, capsys):
    words = ["study", "new", "prompts.jsonl", "x", "y", "-o", "study"]
    arguments = [str(made / word) if (made / word).exists() else word for word in words]
    arguments[-1] = str(made / "study")
    assert main(arguments) == 0
    assert "4 items to judge" in capsys.readouterr().out
    assert main(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1
