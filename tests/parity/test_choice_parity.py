"""Choice by likelihood on an imported model, as transformers computes it on the exported folder.

The peer is the textbook loop: one prompt and one choice at a time, no cache, no batch. The prompts
are those of three shipped tasks of package data.
"""

import math

import pytest
import torch
from text_models import CASES, make_llama
from tiny_tasks import write_lines
from transformers import AutoModelForCausalLM, AutoTokenizer

import pardalis
from pardalis.evaluate.tasks import evaluate_tasks, load_task, read_items, shipped_tasks
from pardalis.interop import export_model, import_model

CASE = "Llama 3.1"
# Measured: at most 3.8e-6, of values up to 52.
CLOSE = 1e-4

WORDS = ["owl", "the cat", "fox", "an old oak", "naïve owl"]
CHOICES = [[WORDS[(n + k) % 5] for k in range(4)] for n in range(5)]
ITEMS = {
    "flag_capital": [
        {"image": "none.png", "country": word, "choices": CHOICES[n]}
        for n, word in enumerate(WORDS)
    ],
    "dictionary_word": [
        {"speech": "noun", "definition": f"what sat on {word}", "choices": CHOICES[n]}
        for n, word in enumerate(WORDS)
    ],
    "article_topic": [
        {"text": f"The {word} ran. 3 < 4", "choices": CHOICES[n]} for n, word in enumerate(WORDS)
    ],
}
TASKS = {"country_capital": "flag_capital", "dictionary_word": "", "article_topic": ""}


@pytest.fixture(scope="module")
def folders(codec, tmp_path_factory):
    home = tmp_path_factory.mktemp("choice")
    codec.image_tokenizer.save(home / "image")
    make_llama(home / "hf", **CASES[CASE])
    import_model(home / "hf", home / "bundle", image_tokenizer=home / "image")
    export_model(home / "bundle", home / "exported", "hf")
    for name, items in ITEMS.items():
        lines = [{"id": f"q{n}", "answer": n % 4, **item} for n, item in enumerate(items)]
        for split in ("test", "train"):
            write_lines(home / "data" / f"{name}.{split}.jsonl", lines)
    return home


@torch.no_grad()
def log_prob(model, tokenizer, prompt: str, continuation: str) -> float:
    """Return the log-probability of a continuation, all of it computed at once."""
    before = tokenizer(prompt).input_ids
    after = tokenizer(continuation, add_special_tokens=False).input_ids
    log_probs = model(torch.tensor([before + after])).logits[0].double().log_softmax(-1)
    places = range(len(before) - 1, len(before) + len(after) - 1)
    return math.fsum(
        log_probs[place, token].item() for place, token in zip(places, after, strict=True)
    )


def test_log_probabilities_and_accuracy_are_those_of_transformers(compare, folders):
    evaluated = evaluate_tasks(
        pardalis.load(folders / "bundle", dtype=torch.float32),
        list(TASKS),
        folders / "results",
        data=folders / "data",
    )
    model = AutoModelForCausalLM.from_pretrained(folders / "exported", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folders / "exported")
    for name, data in TASKS.items():
        task, right = load_task(shipped_tasks()[name]), 0
        records = {each["id"]: each for each in read_items(folders / "results", name)}
        for n, item in enumerate(ITEMS[data or name]):
            prompt = task.prompt.format_map(item)
            theirs = [log_prob(model, tokenizer, prompt, f" {c}") for c in item["choices"]]
            ours = records[f"q{n}"]["details"]["log_probs"]
            compare(
                "choice, transformers on the export", "log-probabilities",
                torch.tensor(ours), torch.tensor(theirs), atol=CLOSE,
            )  # fmt: skip
            right += theirs.index(max(theirs)) == n % 4
        accuracy = evaluated["tasks"][name]["numbers"]["accuracy"]["value"]
        assert accuracy == pytest.approx(right / 5)
