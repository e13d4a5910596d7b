"""Tasks of instruction tuning: their documents, from Python and from a file."""

import json

import PIL.Image
import pytest

from pardalis import GenerationConfig
from pardalis.cli.generate import config_of
from pardalis.cli.generate_otherwise import of_task
from pardalis.cli.main import build_parser
from pardalis.documents import TASKS, Document, Image, Text, read_jsonl, task_document
from pardalis.errors import DataError, RequestError

DAY, NIGHT = (Image(PIL.Image.new("RGB", (4, 4), colour)) for colour in ("white", "black"))


def test_an_edit_is_written_as_in_the_paper():
    document = task_document(
        "edit", {"image": DAY, "instruction": "make it night", "edited": NIGHT}
    )
    words = Text("Edit first image following the instruction")
    assert document.segments == (words, DAY, Text("make it night"), NIGHT)


def test_an_answer_in_text_has_its_space():
    document = task_document("vqa", {"image": DAY, "question": "When?", "answer": "By day."}, "q1")
    assert document.segments == (Text("Answer the question"), DAY, Text("When? By day."))
    assert document.name == "q1"
    prompt = task_document("vqa", {"image": DAY, "question": "When?"})
    assert prompt.segments == (Text("Answer the question"), DAY, Text("When?"))


@pytest.mark.parametrize("name", TASKS)
def test_every_task_has_its_prompt_before_its_answer(name):
    task = TASKS[name]
    fields = {each: DAY if each in task.images else "an owl" for each in task.fields}
    whole = task_document(name, fields)
    del fields[task.answer]
    prompt = task_document(name, fields)
    assert len(whole.images) == len(task.images)
    assert whole.text.startswith(prompt.text.rstrip())
    GenerationConfig().with_options(task.options)
    assert task.options["mode"] == ("image" if task.answer in task.images else "text")


@pytest.mark.parametrize(
    ("task", "fields", "message"),
    [
        ("draw", {}, "There is no task 'draw'; choose one of edit, structure"),
        ("vqa", {"image": DAY}, "A task 'vqa' has no 'question'; its fields are image, question"),
        ("caption", {"image": DAY, "owl": "x"}, "has an unknown field 'owl'"),
        ("caption", {"image": "day.png"}, "The field 'image' of a task is a text"),
        ("caption", {"image": DAY, "caption": DAY}, "The field 'caption' of a task must be a text"),
    ],
)
def test_what_is_no_task(task, fields, message):
    with pytest.raises(DataError, match=message):
        task_document(task, fields)


def test_lines_of_a_file(tmp_path):
    DAY.source.save(tmp_path / "day.png")
    lines = [
        {"task": "caption", "image": "day.png", "caption": "A day.", "name": "one"},
        {"task": "caption", "image": "day.png"},
        {"task": "caption", "image": "none.png", "caption": "A day."},
        {"task": "draw", "image": "day.png"},
    ]
    path = tmp_path / "tasks.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    document, *rejected = read_jsonl(path)
    expected = (Text("Describe the image"), Image(tmp_path / "day.png"), Text("A day."))
    assert document == Document(expected, "one")
    assert [each.kind for each in rejected] == ["bad-task", "missing-image", "bad-task"]
    assert "The task has no 'caption', its answer." in rejected[0].reason


def test_a_task_of_the_command_line_brings_its_guidance(tmp_path):
    DAY.source.save(tmp_path / "day.png")
    parts, given = [tmp_path / "day.png", "make it night"], GenerationConfig()
    [document], config = of_task("edit", parts, given)
    assert document.images[0].source == tmp_path / "day.png"
    assert (config.mode, config.guidance, config.image_guidance) == ("image", 7.5, 1.5)
    for guidance in (3.0, 1.0):  # also the default, if it is given
        options = build_parser().parse_args(
            ["generate", "b", "--task", "edit", "--guidance", str(guidance), "a", "b"]
        )
        config = of_task("edit", parts, config_of(options), given=vars(options))[1]
        assert (config.mode, config.guidance, config.image_guidance) == ("image", guidance, 1.5)
    with pytest.raises(RequestError, match="takes 2 parts: image, instruction; got 1"):
        of_task("edit", parts[:1], given)
    with pytest.raises(RequestError, match="There is no task 'draw'"):
        of_task("draw", parts, given)
