"""lm-evaluation-harness on a bundle, and with its own adapter on the exported model."""

import json
import warnings
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from text_models import make_llama
from tiny_tasks import write_lines
from transformers import AutoModelForCausalLM, AutoTokenizer

import pardalis
from pardalis.errors import ConfigError, RequestError
from pardalis.evaluate.tasks import evaluate_tasks, read_items
from pardalis.interop import export_model, import_model

pytestmark = [
    pytest.mark.skipif(
        find_spec("lm_eval") is None, reason="lm-eval is not installed (extra lm-eval)"
    ),
    pytest.mark.filterwarnings("ignore"),  # of what the harness imports
]

# Measured on one core of an AMD EPYC: at most 3.3e-5, of values up to 1,280.
CLOSE = 1e-4
CONTEXT = 64  # of the models
# What the harness takes from a tokenizer's config, which the small ones do without.
ENDS = {
    "SmolLM2": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
    "Llama 2": {"bos_token": "<s>", "eos_token": "</s>"},
}

WORDS = ["owl", "the cat", "fox", "an old oak", "naïve owl", "tree", "ran", "3 < 4"]
ITEMS = [
    {
        "id": f"q{n}",
        "word": word,
        "choices": [WORDS[n - 1], "a fox", word],
        "answer": n % 3,
        "text": " ".join(f"The {word} sat {k * k}." for k in range(1 + 2 * n)),
    }
    for n, word in enumerate(WORDS)
]
COMMON = {
    "dataset_path": "json", "test_split": "test", "num_fewshot": 0, "doc_to_text": "The {{word}} is"
}  # fmt: skip
TASKS = {
    "choosing": {
        "output_type": "multiple_choice", "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer", "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "writing": {
        "output_type": "generate_until", "doc_to_target": "{{word}}",
        "generation_kwargs": {"until": [".", "\n\n"], "max_gen_toks": 12},
        "metric_list": [{"metric": "exact_match"}],
    },
    "reading": {
        "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    },
}  # fmt: skip
OURS = """\
kind = "choice"
prompt = "The {word} is"
choices = ["{choices}"]
answer = "{answer}"
normalise = ["none", "characters"]

[data]
path = "items.jsonl"
id = "id"
"""


@pytest.fixture(scope="module")
def lm_eval(tmp_path_factory):
    """The harness, which reads and caches only files of this test."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("HF_HOME", "HF_DATASETS_CACHE"):
            patch.setenv(name, str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        import lm_eval.models.huggingface
        import lm_eval.tasks

        import pardalis.evaluate.lm_eval  # noqa: F401  # registers ours

        yield lm_eval


@pytest.fixture(scope="module")
def folders(codec, tmp_path_factory):
    """Models without and with a bos before each text, imported and exported."""
    home = tmp_path_factory.mktemp("lm_eval")
    codec.image_tokenizer.save(home / "image")
    for name in ("SmolLM2", "Llama 2"):
        make_llama(home / name / "hf", tokenizer=name)
        import_model(home / name / "hf", home / name / "bundle", image_tokenizer=home / "image")
        export_model(home / name / "bundle", home / name / "exported", "hf")
    write_lines(home / "items.jsonl", ITEMS)
    (home / "choosing.toml").write_text(OURS)
    return home


@pytest.fixture(scope="module")
def ours(lm_eval, folders):
    """Bundles as the harness's command makes them."""

    def load(name):
        arguments = f"bundle={folders / name / 'bundle'},dtype=float32,max_gen_toks=12"
        return lm_eval.api.registry.get_model("pardalis").create_from_arg_string(
            arguments, {"batch_size": 1, "max_batch_size": None, "device": None}
        )

    return {name: load(name) for name in ENDS}


@pytest.fixture(scope="module")
def theirs(lm_eval, folders):
    def load(name):
        folder = folders / name / "exported"
        return lm_eval.models.huggingface.HFLM(
            AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(),
            tokenizer=AutoTokenizer.from_pretrained(folder, **ENDS[name]),
            batch_size=4, max_length=CONTEXT - 1,
        )  # fmt: skip

    return {name: load(name) for name in ENDS}


def evaluated(lm_eval, model, folders):
    """Return the scores of each task, and the answers of the model by task."""
    data = {"data_files": {"test": str(folders / "items.jsonl")}}
    found = lm_eval.simple_evaluate(
        model=model,
        tasks=[{"task": k, "dataset_kwargs": data, **COMMON, **v} for k, v in TASKS.items()],
        task_manager=lm_eval.tasks.TaskManager(include_defaults=False),
        bootstrap_iters=0,
    )
    answers = {name: [each["resps"] for each in found["samples"][name]] for name in TASKS}
    return found["results"], answers


def test_the_harness_measures_a_bundle_as_its_export(compare, lm_eval, ours, theirs, folders):
    scores, answers = evaluated(lm_eval, ours["SmolLM2"], folders)
    their_scores, their_answers = evaluated(lm_eval, theirs["SmolLM2"], folders)
    assert answers["writing"] == their_answers["writing"]
    assert any(text for [[text]] in answers["writing"])
    numbers = {
        "choosing": lambda found: [value[0] for choices in found for [value] in choices],
        "reading": lambda found: [value for [[value]] in found],
    }
    for task, flat in numbers.items():
        compare(
            "lm-eval, its adapter of transformers", f"log-likelihoods, {task}",
            torch.tensor(flat(answers[task]), dtype=torch.float64),
            torch.tensor(flat(their_answers[task]), dtype=torch.float64), atol=CLOSE,
        )  # fmt: skip
    for task in TASKS:
        for name, value in scores[task].items():
            if isinstance(value, float):
                assert value == pytest.approx(their_scores[task][name], abs=1e-5)
    evaluate_tasks(ours["SmolLM2"].bundle, [folders / "choosing.toml"], folders / "results")
    records = read_items(folders / "results", "choosing")
    mean = {
        name: sum(each["scores"][name] for each in records) / len(records)
        for name in ("accuracy", "accuracy_characters")
    }
    assert scores["choosing"]["acc,none"] == pytest.approx(mean["accuracy"])
    assert scores["choosing"]["acc_norm,none"] == pytest.approx(mean["accuracy_characters"])
    log_probs = [value for each in records for value in each["details"]["log_probs"]]
    assert log_probs == pytest.approx(numbers["choosing"](answers["choosing"]), abs=CLOSE)


def of(*arguments):
    """Return requests with these arguments."""
    return [SimpleNamespace(args=each) for each in arguments]


@pytest.mark.parametrize("name", ["SmolLM2", "Llama 2"])
def test_tokens_where_context_and_continuation_meet(ours, theirs, name):
    pairs = of(
        ("The owl", " and the fox"), ("The owl ", "and the fox"), ("The o", "wl sat"),
        ("", "The cat."), ("A fox\n", "ran"), ("naïve", " 🦉"),
    )  # fmt: skip
    expected = theirs[name].loglikelihood(pairs)
    found = ours[name].loglikelihood(pairs)
    assert [value for value, _ in found] == pytest.approx([v for v, _ in expected], abs=CLOSE)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    [text] = ours[name].generate_until(of(("The owl", {"until": []})))
    assert [text] == theirs[name].generate_until(of(("The owl", {"until": [], "max_gen_toks": 12})))
    if text:
        assert ours[name].loglikelihood(of(("The owl", text)))[0][1] or name == "Llama 2"


def test_what_does_not_fit_is_cut_off_at_the_left(ours):
    model = ours["Llama 2"]
    long, end = "An owl sat on the old oak. " * 20, "The fox"
    [(value, _)] = model.loglikelihood(of((long + end, " ran")))
    prompt = model.bundle.codec.encode_prompt(pardalis.Document((pardalis.Text(long + end),)))
    assert len(prompt) > CONTEXT
    [(expected, _)] = model.loglikelihood(of((long[-60:] + end, " ran")))
    assert value != pytest.approx(expected, abs=1e-3)  # more of it is read than that
    assert model.generate_until(of((long, {"max_gen_toks": 8})))
    with pytest.raises(RequestError, match="leaves no room"):
        model.generate_until(of(("An owl", {"max_gen_toks": CONTEXT})))
    with pytest.raises(RequestError, match="num_beams"):
        model.generate_until(of(("An owl", {"max_gen_toks": 2, "num_beams": 4})))


def test_conversations_are_written_by_the_codec(ours):
    model = ours["SmolLM2"]
    turns = [{"role": "user", "content": "The owl?"}]
    context = model.apply_chat_template(turns)
    [(value, _)] = model.loglikelihood(of((context, "The fox")))
    [score] = pardalis.score(model.bundle, [(turns, "The fox")])
    assert value == pytest.approx(score.log_prob, abs=CLOSE)
    [text] = model.generate_until(of((context, {"max_gen_toks": 6})))
    response = pardalis.generate(
        model.bundle, turns, mode="text", max_new_tokens=7, temperature=0.0, chat=True
    )
    assert text == response.text
    assert model.loglikelihood(of((json.dumps(turns), "The fox")))[0][0] != value  # plain text


def test_a_wrong_dtype(lm_eval, folders):
    from pardalis.evaluate.lm_eval import PardalisLM

    with pytest.raises(ConfigError, match="stored, float32, bfloat16"):
        PardalisLM(folders / "SmolLM2" / "bundle", dtype="int3")
