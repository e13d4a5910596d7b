"""Shipped tasks on tiny files of the shape that each set is published in."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from tiny_tasks import write_lines

from pardalis.documents import Document, Image, Text
from pardalis.errors import ConfigError, DataError
from pardalis.evaluate.tasks import Item, load_items, task_of
from pardalis.evaluate.tasks import run as runner
from pardalis.evaluate.tasks.find import load_task, load_tasks, shipped_tasks
from pardalis.evaluate.tasks.standard import (
    CocoConfig,
    DpgConfig,
    HellaSwagConfig,
    KarpathyConfig,
    LabelledConfig,
    MathConfig,
    MmluConfig,
    MmmuConfig,
    ScienceQaConfig,
    VqaConfig,
    WinoGrandeConfig,
)
from pardalis.evaluate.tasks.task import Trial


def png() -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (4, 4), "red").save(buffer, "PNG")
    return buffer.getvalue()


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png())


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


# ── the files of each set ────────────────────────────────────────────────────────────────────────


def arc(folder: Path, name: str) -> None:
    for split in ("train", "test"):
        write_parquet(
            folder / name / f"{split}-00000-of-00001.parquet",
            [
                {
                    "id": f"{split}_1",
                    "question": "Which is a star?",
                    "choices": {"text": ["Mars", "Sun"], "label": ["1", "2"]},
                    "answerKey": "2",
                }
            ],
        )


def labelled(folder: Path, name: str, fields: dict[str, str], label: str) -> None:
    for split in ("train", "dev"):
        write_lines(folder / name / f"{split}.jsonl", [fields])
        (folder / name / f"{split}-labels.lst").write_text(f"{label}\n")


def hellaswag(folder: Path) -> None:
    for split in ("train", "val"):
        record = {
            "ind": 24, "activity_label": "Roof shingle removal", "ctx_a": "A man sits on a roof.",
            "ctx_b": "he", "ctx": "A man sits on a roof. he", "split": split,
            "split_type": "indomain", "label": 3, "source_id": "activitynet~v_1",
            "endings": ["sings.", "[step] rests.", "is [title] old.", "pulls up shingles."],
        }  # fmt: skip
        write_lines(folder / "hellaswag" / "data" / f"hellaswag_{split}.jsonl", [record])


def winogrande(folder: Path) -> None:
    record = {
        "qID": "3D5-1", "sentence": "Ann beat Eve, since _ was faster.", "option1": "Ann",
        "option2": "Eve", "answer": "1",
    }  # fmt: skip
    for split in ("dev", "train_xl"):
        write_lines(folder / "winogrande_1.1" / f"{split}.jsonl", [record])


def openbookqa(folder: Path) -> None:
    for split in ("train", "test"):
        record = {
            "id": f"8-{split}", "question_stem": "The sun is",
            "choices": {"text": ["a planet", "a star"], "label": ["A", "B"]}, "answerKey": "B",
        }  # fmt: skip
        write_parquet(folder / "openbookqa" / "main" / f"{split}-00000-of-00001.parquet", [record])


def boolq(folder: Path) -> None:
    for split in ("train", "validation"):
        record = {"question": "is it so", "answer": True, "passage": "It is so."}
        write_parquet(folder / "boolq" / "data" / f"{split}-00000-of-00001.parquet", [record])


def gsm8k(folder: Path) -> None:
    for split in ("train", "test"):
        rows = [
            {
                "question": f"{split} {n} + 1?",
                "answer": f"{n} + 1 = <<{n}+1={n + 1}>>\n#### {n + 1}",
            }
            for n in range(9)
        ]
        write_parquet(folder / "gsm8k" / "main" / f"{split}-00000-of-00001.parquet", rows)


MATH = (
    "algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory",
    "prealgebra", "precalculus",
)  # fmt: skip


def mathematics(folder: Path) -> None:
    for subject in MATH:
        for split in ("train", "test"):
            row = {
                "problem": f"Find x of {subject} {split}.", "level": "Level 1", "type": "Algebra",
                "solution": "So $x = \\boxed{\\frac{1}{2}}$.",
            }  # fmt: skip
            write_parquet(
                folder / "hendrycks_math" / subject / f"{split}-00000-of-00001.parquet", [row]
            )


def mmlu(folder: Path) -> None:
    rows = [
        {"question": f"Which {n}?", "subject": "college_physics", "choices": list("wxyz"),
         "answer": n % 4}
        for n in range(7)
    ]  # fmt: skip
    write_parquet(folder / "mmlu" / "all" / "dev-00000-of-00001.parquet", rows)
    write_parquet(folder / "mmlu" / "all" / "test-00000-of-00001.parquet", rows[:1])


def karpathy(folder: Path, file: str, image_folder: str, filepath: str | None) -> None:
    images = []
    for number, split in enumerate(["test", "train", "restval", "val"]):
        name = f"{number}.jpg"
        write_image(folder / image_folder / (filepath or "") / name)
        captions = [f"An owl {number}.", " A bird\n"]
        images.append(
            {"filename": name, "split": split, "imgid": number, "sentids": [0, 1],
             "sentences": [{"raw": text, "tokens": [], "imgid": number} for text in captions]}
            | ({"filepath": filepath, "cocoid": 9000 + number} if filepath else {})
        )  # fmt: skip
    train = dict(images[1], imgid=10, filename="1.jpg", sentences=[{"raw": "More"}])
    if filepath:
        train["cocoid"] = 9010
    write_json(folder / file, {"images": [*images, train], "dataset": "coco"})


def nocaps(folder: Path) -> None:
    write_image(folder / "nocaps" / "images" / "a.jpg")
    write_json(
        folder / "nocaps" / "nocaps_val_4500_captions.json",
        {
            "licenses": [], "info": {},
            "images": [{"id": 0, "file_name": "a.jpg", "open_images_id": "a", "coco_url": "",
                        "width": 4, "height": 4, "domain": "in-domain"}],
            "annotations": [{"image_id": 0, "id": n, "caption": f"An owl {n}."} for n in range(10)],
        },
    )  # fmt: skip


def vqa(folder: Path, name: str, start: str, people: str) -> None:
    for split in ("train", "val"):
        questions, annotations = [], []
        for number in range(3):
            write_image(folder / "coco" / f"{split}2014" / f"COCO_{split}2014_{number:012d}.jpg")
            key = {"image_id": number, "question_id": 1000 + number}
            questions.append({**key, "question": "What is it?"})
            answers = [
                {"answer": text, "answer_confidence": "yes", "answer_id": n}
                for n, text in enumerate(["owl"] * 6 + ["bird"] * 4)
            ]
            annotations.append(
                {**key, "question_type": "what", "multiple_choice_answer": "owl",
                 "answer_type": "other", "answers": answers}
            )  # fmt: skip
        write_json(
            folder / name / f"{start}_mscoco_{split}2014_questions.json",
            {"info": {}, "data_subtype": f"{split}2014", "questions": questions},
        )
        write_json(
            folder / name / f"{people}mscoco_{split}2014_annotations.json",
            {"info": {}, "annotations": annotations},
        )


def textvqa(folder: Path) -> None:
    for split in ("train", "val"):
        entries = []
        for number in range(3):
            name = f"{split}{number}"
            write_image(folder / "textvqa" / "train_images" / f"{name}.jpg")
            entries.append(
                {"question": "What does it say?", "image_id": name, "question_id": number,
                 "answers": ["stop"] * 10, "image_classes": [], "set_name": split}
            )  # fmt: skip
        write_json(
            folder / "textvqa" / f"TextVQA_0.5.1_{split}.json",
            {"dataset_name": "x", "data": entries},
        )


def vizwiz(folder: Path) -> None:
    for split in ("train", "val"):
        entries = []
        for number in range(3):
            name = f"VizWiz_{split}_{number:08d}.jpg"
            write_image(folder / "vizwiz" / split / name)
            answers = [{"answer": "owl", "answer_confidence": "yes"}] * 10
            entries.append(
                {"image": name, "question": "What?", "answers": answers, "answer_type": "other",
                 "answerable": 1}
            )  # fmt: skip
        write_json(folder / "vizwiz" / "Annotations" / f"{split}.json", entries)


def scienceqa(folder: Path) -> None:
    problem = {
        "question": "Which?", "choices": ["a", "b"], "answer": 1, "hint": "", "image": "image.png",
        "task": "closed choice", "grade": "grade2", "subject": "science", "topic": "biology",
        "category": "", "skill": "", "lecture": "", "solution": "", "split": "test",
    }  # fmt: skip
    data = folder / "ScienceQA" / "data" / "scienceqa"
    write_json(data / "problems.json", {"4": problem, "7": {**problem, "image": None}})
    write_json(data / "pid_splits.json", {"train": [], "test": ["4", "7"]})
    write_image(folder / "ScienceQA" / "images" / "test" / "4" / "image.png")


def mmmu_rows() -> list[dict[str, Any]]:
    images = {f"image_{n}": None for n in range(2, 8)}
    return [
        {
            "id": "validation_Art_1", "question": "Who drew <image 1>?",
            "options": "['Ann', \"Eve's <image 1>\"]", "explanation": "", **images,
            "image_1": {"bytes": png(), "path": "a.png"}, "img_type": "['Paintings']",
            "answer": "B", "topic_difficulty": "Easy", "question_type": "multiple-choice",
            "subfield": "Drawing",
        },
        {
            "id": "validation_Art_2", "question": "How many <image 1>?", "options": "[]",
            "explanation": "", **images, "image_1": {"bytes": png(), "path": "a.png"},
            "img_type": "[]", "answer": "3", "topic_difficulty": "Easy", "question_type": "open",
            "subfield": "Drawing",
        },
    ]  # fmt: skip


def mmmu(folder: Path) -> None:
    task = load_task(shipped_tasks()["mmmu"])
    for subject in task.data.subjects:
        rows = [dict(row, id=row["id"].replace("Art", subject)) for row in mmmu_rows()]
        write_parquet(folder / "MMMU" / subject / "validation-00000-of-00001.parquet", rows)


def geneval(folder: Path) -> None:
    include = [{"class": "bench", "count": 1}]
    record = {"tag": "single_object", "include": include, "prompt": "a photo of a bench"}
    write_lines(folder / "geneval" / "prompts" / "evaluation_metadata.jsonl", [record])


def dpg(folder: Path) -> None:
    path = folder / "ELLA" / "dpg_bench" / "dpg_bench.csv"
    path.parent.mkdir(parents=True)
    path.write_text(
        "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,"
        "question_natural_language\n"
        'partiprompts1,"A long, long prompt.",,1,0,entity,whole,entity - whole (x),Is there an x?\n'
        'partiprompts1,"A long, long prompt.",,2,1,attribute,color,"attribute (x, red)",Is x red?\n'
        "stanford2,Another one.,,1,0,entity,whole,entity - whole (y),Is there a y?\n"
    )


FILES: dict[str, Callable[[Path], None]] = {
    "arc_easy": lambda folder: arc(folder, "ARC-Easy"),
    "arc_challenge": lambda folder: arc(folder, "ARC-Challenge"),
    "piqa": lambda folder: labelled(
        folder, "physicaliqa-train-dev", {"goal": "Cut it", "sol1": "a", "sol2": "b"}, "1"
    ),
    "siqa": lambda folder: labelled(
        folder, "socialiqa-train-dev",
        {"context": "C.", "question": "Q?", "answerA": "a", "answerB": "b", "answerC": "c"}, "3",
    ),
    "hellaswag": hellaswag,
    "winogrande": winogrande,
    "openbookqa": openbookqa,
    "boolq": boolq,
    "gsm8k": gsm8k,
    "gsm8k_maj8": gsm8k,
    "math": mathematics,
    "math_maj4": mathematics,
    "mmlu": mmlu,
    "coco_captions": lambda folder: karpathy(folder, "coco/dataset_coco.json", "coco", "val2014"),
    "coco_images": lambda folder: karpathy(folder, "coco/dataset_coco.json", "coco", "val2014"),
    "flickr30k": lambda folder: karpathy(
        folder, "flickr30k/dataset_flickr30k.json", "flickr30k/flickr30k-images", None
    ),
    "nocaps": nocaps,
    "vqav2": lambda folder: vqa(folder, "vqav2", "v2_OpenEnded", "v2_"),
    "okvqa": lambda folder: vqa(folder, "okvqa", "OpenEnded", ""),
    "textvqa": textvqa,
    "vizwiz": vizwiz,
    "scienceqa": scienceqa,
    "mmmu": mmmu,
    "geneval": geneval,
    "dpg": dpg,
}  # fmt: skip

OURS = 'source = "pardalis '  # test_benchmarks.py reads those of packages, and recipes the others


def test_each_shipped_task_of_published_files_is_here():
    shipped = shipped_tasks()
    own = {name for name, path in shipped.items() if OURS in path.read_text()}
    assert own and set(shipped) - own == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_a_shipped_task_reads_the_published_files(name, tmp_path):
    FILES[name](tmp_path)
    [found] = load_tasks([name], tmp_path)
    loaded = runner._load(found)  # fills each template, and finds each image
    assert loaded.items
    assert found.task.about
    assert found.task.source.startswith("https://")
    [first, *_] = loaded.trials(0)
    prompt = found.task.prompt_of(first)
    if found.task.shots:
        assert len(prompt.text.split(found.task.separator)) > found.task.shots


def test_all_shipped_tasks_can_share_a_folder():
    files: dict[Path, str] = {}
    for name, path in shipped_tasks().items():
        task = load_task(path)
        for file in task.data.files:
            owner = files.setdefault(file, name)
            assert (
                task.source.split(" ")[0] == load_task(shipped_tasks()[owner]).source.split(" ")[0]
            )


def items(layout: Any, folder: Path) -> Iterator[Item]:
    return iter(load_items(layout, folder))


def test_karpathy_takes_the_split_and_the_folder(tmp_path):
    karpathy(tmp_path, "d.json", "images", "val2014")
    [item] = items(KarpathyConfig(path=Path("d.json"), image_folder=Path("images")), tmp_path)
    assert item.id == "9000"
    assert item.fields["image"] == Image(tmp_path / "images" / "val2014" / "0.jpg")
    assert item.fields["captions"] == ["An owl 0.", "A bird"]
    splits = KarpathyConfig(path=Path("d.json"), splits=("train", "restval"))
    assert [each.id for each in items(splits, tmp_path)] == ["9001", "9002", "9010"]


def test_nocaps_joins_captions(tmp_path):
    nocaps(tmp_path)
    [item] = items(CocoConfig(path=Path("nocaps/nocaps_val_4500_captions.json")), tmp_path)
    assert len(item.fields["captions"]) == 10
    assert item.fields["domain"] == "in-domain"


def test_answers_of_people_are_joined(tmp_path):
    vqa(tmp_path, "vqav2", "v2_OpenEnded", "v2_")
    task = load_task(shipped_tasks()["vqav2"])
    first, *_ = items(task.data, tmp_path)
    assert first.id == "1000"
    assert first.fields["answers"] == ["owl"] * 6 + ["bird"] * 4
    assert first.fields["answer_type"] == "other"
    assert first.fields["image"] == Image(
        tmp_path / "coco" / "val2014" / "COCO_val2014_000000000000.jpg"
    )


def test_a_question_without_an_image(tmp_path):
    scienceqa(tmp_path)
    task = load_task(shipped_tasks()["scienceqa"])
    with_image, without = items(task.data, tmp_path)
    assert len(task.prompt_of(Trial(with_image)).images) == 1
    assert not task.prompt_of(Trial(without)).images
    assert task.choices_of(without) == ([Document((Text("A"),)), Document((Text("B"),))], 1)
    only = ScienceQaConfig(
        problems=task.data.problems, splits=task.data.splits, image_folder=Path("ScienceQA/images"),
        only_with_images=True,
    )  # fmt: skip
    assert [item.id for item in items(only, tmp_path)] == ["4"]


def test_images_stand_where_mmmu_marks_them(tmp_path):
    path = tmp_path / "Art" / "validation-00000-of-00001.parquet"
    write_parquet(path, mmmu_rows())
    [item] = items(MmmuConfig(subjects=("Art",)), tmp_path)
    image = Image(png())
    assert item.fields["question"].segments == (Text("Who drew "), image, Text("?"))
    assert item.fields["options"][1].segments == (Text("Eve's "), image)
    assert item.fields["lettered"].segments == (Text("A. Ann\nB. Eve's "), image)
    [item] = items(MmmuConfig(subjects=("Art",), question_type="open"), tmp_path)
    assert item.fields["answer"] == "3"
    rows = [dict(mmmu_rows()[0], question="See <image 2>")]
    write_parquet(path, rows)
    with pytest.raises(DataError, match="names <image 2>, but has no image_2"):
        load_items(MmmuConfig(subjects=("Art",)), tmp_path)


def test_hellaswag_is_cleaned(tmp_path):
    hellaswag(tmp_path)
    [item] = items(HellaSwagConfig(path=Path("hellaswag/data/hellaswag_val.jsonl")), tmp_path)
    assert item.fields["context"] == "Roof shingle removal: A man sits on a roof. He"
    assert item.fields["endings"] == ["sings.", " rests.", "is. old.", "pulls up shingles."]


def test_winogrande_is_cut_at_the_gap(tmp_path):
    winogrande(tmp_path)
    [item] = items(WinoGrandeConfig(path=Path("winogrande_1.1/dev.jsonl")), tmp_path)
    assert item.fields["beginnings"] == ["Ann beat Eve, since Ann", "Ann beat Eve, since Eve"]
    assert (item.fields["ending"], item.fields["right"]) == (" was faster.", 0)


def test_the_examples_of_mmlu_are_those_of_the_subject_in_order(tmp_path):
    mmlu(tmp_path)
    task = load_task(shipped_tasks()["mmlu"])
    [item] = items(task.data, tmp_path)
    text = task.prompt_of(Trial(item)).text
    assert text.startswith(
        "The following are multiple choice questions (with answers) about college physics.\n\n"
        "Which 0?\nA. w\nB. x\nC. y\nD. z\nAnswer: A\n\nWhich 1?"
    )
    assert text.endswith("Answer: A\n\nWhich 0?\nA. w\nB. x\nC. y\nD. z\nAnswer:")
    assert text.count("Which") == 6


def test_the_answer_of_a_solution(tmp_path):
    mathematics(tmp_path)
    layout = MathConfig(
        subjects=("algebra",), file="test-00000-of-00001.parquet", folder=Path("hendrycks_math")
    )
    [item] = items(layout, tmp_path)
    assert item.fields["answer"] == r"\frac{1}{2}"


def test_a_prompt_of_dpg_stands_once(tmp_path):
    dpg(tmp_path)
    first, second = items(DpgConfig(path=Path("ELLA/dpg_bench/dpg_bench.csv")), tmp_path)
    assert (first.id, second.id) == ("partiprompts1", "stanford2")
    assert first.fields["questions"] == ["Is there an x?", "Is x red?"]


QUESTION = {"question": "What?", "image_id": 1, "question_id": 1}


@pytest.mark.parametrize(
    ("layout", "files", "message"),
    [
        (KarpathyConfig(path=Path("a.json")), {"a.json": {"annotations": []}},
         "a.json, `images`, holds NoneType; a list of objects was expected"),
        (KarpathyConfig(path=Path("a.json")), {"a.json": [{"split": "test", "sentences": []}]},
         "image 1, has no 'filename', but sentences, split; is it a file of this set?"),
        (CocoConfig(path=Path("a.json")), {"a.json": []}, "a.json holds list; an object with"),
        (VqaConfig(questions=Path("a.json")), {"a.json": [QUESTION]},
         "has no list of `answers`; a split whose answers are not published cannot be scored"),
        (VqaConfig(questions=Path("a.json"), annotations=Path("b.json")),
         {"a.json": [QUESTION], "b.json": {"annotations": []}},
         "has no annotation of the question 1, which"),
        (VqaConfig(questions=Path("a.json")), {"a.json": [{"question": "?", "answers": []}]},
         "has no `image` and no `image_id`"),
        (ScienceQaConfig(problems=Path("a.json"), splits=Path("b.json")),
         {"a.json": {}, "b.json": {"train": []}}, "b.json has no list 'test'; give one of"),
        (ScienceQaConfig(problems=Path("a.json"), splits=Path("b.json")),
         {"a.json": {}, "b.json": {"test": ["1"]}}, "problem 1, is missing; give the files of one"),
        (LabelledConfig(path=Path("a.json"), labels=Path("b.json")), {"a.json": [{}], "b.json": []},
         "1 labels for the 0 records"),
        (HellaSwagConfig(path=Path("a.json")), {"a.json": [{"label": ""}]},
         "has the label ''; a split with published labels is needed"),
        (WinoGrandeConfig(path=Path("a.json")), {"a.json": [{"sentence": "No gap", "answer": "1"}]},
         "has no gap '_' in its sentence, or no answer 1 or 2"),
        (MmluConfig(path=Path("a.json"), examples_path=Path("b.json")),
         {"a.json": [{"question": "?", "choices": list("abcd"), "answer": 1, "subject": "art"}],
          "b.json": []},
         "b.json has 0 examples of the subject 'art'; 5 are needed"),
        (MmluConfig(path=Path("a.json"), examples_path=Path("b.json")),
         {"a.json": [{"question": "?", "choices": ["a"], "answer": 1}], "b.json": []},
         "has 1 choices and the answer 1; 4 choices and an answer from 0 to 3 were expected"),
        (MathConfig(subjects=(".",), file="a.json"), {"a.json": [{"solution": "1", "problem": ""}]},
         "has no \\boxed answer in its solution"),
    ],
)  # fmt: skip
def test_files_of_another_shape(layout, files, message, tmp_path):
    for name, value in files.items():
        write_json(tmp_path / name, value)
    if isinstance(layout, LabelledConfig):
        (tmp_path / "a.json").write_text("[]")
        (tmp_path / "b.json").write_text("1\n")
    with pytest.raises(DataError) as caught:
        load_items(layout, tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"kind": "karpathy", "path": "a.json", "splits": []}, "data.splits must have at least"),
        ({"kind": "mmmu", "subjects": []}, "data.subjects must have at least one entry"),
        ({"kind": "math", "subjects": [], "file": "a.json"}, "data.subjects must have at least"),
    ],
)
def test_a_layout_that_names_nothing(data, message):
    with pytest.raises(ConfigError) as caught:
        task_of({"name": "t", "kind": "perplexity", "data": data})
    assert message in str(caught.value)
