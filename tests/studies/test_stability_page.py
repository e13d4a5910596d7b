"""Results of a stability study, from known curves."""

import io
import json
import sys

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import html

from pardalis.evaluate.metrics_file import Metrics
from pardalis.studies.stability_page import counts, rate_name, warnings, write_study
from pardalis.studies.stability_results import Study, StudyRun, plain, unstable_from
from pardalis.train.alarms import Alarm

RATES, SEEDS, STEPS = (1e-3, 1e-2, 1e-1), (0, 1), 100
START = {"loss": 8.0, "loss_text": 8.0, "loss_image": 8.0}


def a_run(loss, alarms=(), diverged=None, steps=STEPS, **statistics):
    """A run with a line every ten steps; ``loss`` is a number, or a function of the step."""
    lines = []
    for step in range(10, steps + 1, 10):
        value = float(loss(step) if callable(loss) else loss)
        line = {"step": step, "time_s": step / 10, "loss": value, "loss_text": value + 1}
        lines.append(line | {"loss_image": value - 1, **statistics})
    alarms = [Alarm(name=name, step=at, value=1.0, rule="is above 0") for at, name in alarms]
    return StudyRun(start=START, metrics=Metrics(lines), alarms=alarms, diverged=diverged)


def a_study(runs, variants=("plain", "cured"), rates=RATES):
    """A study of runs by (variant, learning rate); a dict gives a run per seed."""
    return Study(
        recipe="small",
        steps=STEPS,
        learning_rates=rates,
        seeds=SEEDS,
        high=rates[-1],
        variants={name: (f"model.name={name}",) for name in variants},
        runs={
            (name, rate, seed): each[seed] if isinstance(each, dict) else each
            for seed in SEEDS
            for (name, rate), each in runs.items()
        },
    )


@pytest.fixture
def study():
    """Plain is unstable at the middle rate and diverges at the largest; cured is stable."""
    slow = a_run(5.0)
    unstable = a_run(lambda step: 3.0 if step <= 40 else 4.0, alarms=[(20, "attention_logit")])
    diverged = a_run(
        3.0,
        diverged=55,
        steps=50,
        alarms=[(20, "loss"), (60, "grad_norm")],
        attention_logit_text=1e4,
    )
    fine = a_run(3.0, attention_logit_text=9.0)
    return a_study(
        {
            ("plain", 1e-3): a_run(3.5),
            ("plain", 1e-2): {0: unstable, 1: unstable},
            ("plain", 1e-1): diverged,
            ("cured", 1e-3): slow,
            ("cured", 1e-2): fine,
            ("cured", 1e-1): {0: a_run(3.02), 1: a_run(3.03, alarms=[(90, "grad_norm")])},
        }
    )


def test_the_final_loss_is_that_of_the_last_tenth_or_the_initial_one():
    assert a_run(lambda step: step).final("loss", 100) == 100
    assert a_run(lambda step: step, steps=200).final("loss", 200) == pytest.approx(195)
    assert a_run(3.0, diverged=100).final("loss_text", 100) == 8.0
    assert np.isnan(a_run(3.0).final("loss_of_none", 100))


def test_sensitivity_is_the_mean_distance_to_the_best_loss(study):
    # 3.5, 4 and 8, the initial loss; 5, 3 and 3.02 or 3.03.
    np.testing.assert_allclose(study.sensitivity("plain"), [(0 + 0.5 + 4.5) / 3] * 2)
    np.testing.assert_allclose(study.sensitivity("cured"), [(2 + 0.02) / 3, (2 + 0.03) / 3])
    plain_one, cured = study.summaries()
    assert plain_one.relative_sensitivity == 1.0
    assert cured.sensitivity.min == pytest.approx(2.02 / 3)
    assert cured.sensitivity.max == pytest.approx(2.03 / 3)
    assert cured.relative_sensitivity == pytest.approx(2.025 / 5)


@given(
    st.lists(
        st.lists(st.floats(0.1, 20.0), min_size=len(RATES), max_size=len(RATES)),
        min_size=len(SEEDS),
        max_size=len(SEEDS),
    )
)
def test_sensitivity_equals_the_definition(losses):
    runs = {
        ("plain", rate): {seed: a_run(losses[seed][i]) for seed in SEEDS}
        for i, rate in enumerate(RATES)
    }
    found = a_study(runs, variants=("plain",)).sensitivity("plain")
    for seed in SEEDS:
        capped = [min(loss, START["loss"]) for loss in losses[seed]]
        expected = sum(loss - min(capped) for loss in capped) / len(RATES)
        assert found[seed] == pytest.approx(expected, abs=1e-9)


def test_losses_are_capped_at_the_initial_loss():
    runs = {("plain", 1e-3): a_run(3.0), ("plain", 1e-2): a_run(50.0), ("plain", 1e-1): a_run(3.0)}
    np.testing.assert_allclose(a_study(runs, ("plain",)).sensitivity("plain"), 5 / 3)


def test_good_learning_rates_are_within_one_percent_of_the_best(study):
    assert study.best("plain") == 1e-3
    assert study.good("plain") == (1e-3, 1e-3)
    assert study.good("cured") == (1e-2, 1e-1)
    losses = [3.05, 3.02, 3.0, 3.01, 3.2, 3.0]
    rates = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    runs = {("v", rate): a_run(loss) for rate, loss in zip(rates, losses, strict=True)}
    assert a_study(runs, ("v",), rates).good("v") == (1e-4, 1e-2)  # the range ends at a gap


def test_a_run_is_unstable_from_where_its_loss_stays_above_the_best():
    good = a_run(3.0)
    assert unstable_from(a_run(3.05), good) is None
    assert unstable_from(a_run(3.07), good) == 10
    recovered = a_run(lambda step: 9.0 if step < 60 else 3.0)
    assert unstable_from(recovered, good) is None
    unstable = a_run(lambda step: 9.0 if step in (20, 70, 80, 90, 100) else 3.0)
    assert unstable_from(unstable, good) == 70
    assert unstable_from(a_run(3.0, steps=50, diverged=53), good) == 53
    assert unstable_from(a_run(lambda s: 3.0 + (s > 30), steps=50, diverged=53), good) == 40
    assert unstable_from(a_run(3.0, steps=0, diverged=7), good) == 7
    assert unstable_from(a_run(3.0), a_run(3.0, steps=0, diverged=3)) is None


def test_outcomes_compare_alarms_with_instability(study):
    found = {(o.variant, o.learning_rate, o.seed): o for o in study.outcomes()}
    assert set(found) == {
        ("plain", 1e-2, 0), ("plain", 1e-2, 1), ("plain", 1e-1, 0), ("plain", 1e-1, 1),
        ("cured", 1e-1, 1),
    }  # fmt: skip
    early = found["plain", 1e-2, 0]
    assert (early.alarm, early.alarm_name, early.unstable_from, early.lead) == (
        20,
        "attention_logit",
        50,
        30,
    )
    late = found["plain", 1e-1, 0]
    assert (late.alarm, late.unstable_from, late.diverged, late.lead) == (60, 55, 55, -5)
    harmless = found["cured", 1e-1, 1]
    assert (harmless.alarm, harmless.unstable_from, harmless.lead) == (90, None, None)
    # cured has a higher loss at 1e-3 too, but below its best learning rate.
    assert ("cured", 1e-3, 0) not in found
    assert counts(study.outcomes()) == {
        "unstable": 4, "warned": 2, "lead": 30, "false_alarms": 1
    }  # fmt: skip
    entries = {(each["variant"], each["learning_rate"]): each for each in warnings(study)}
    assert list(entries) == [("plain", 1e-2), ("plain", 1e-1), ("cured", 1e-1)]
    assert entries["plain", 1e-1]["diverged"] == 2
    assert entries["plain", 1e-2]["lead"] == [30, 30]


def test_growth_is_a_mean_and_range_over_seeds():
    runs = {("v", rate): {0: a_run(1.0, steps=50), 1: a_run(3.0)} for rate in RATES}
    steps, spread = a_study(runs, ("v",)).growth("v", 1e-3, "loss")
    assert steps == list(range(10, 101, 10))
    np.testing.assert_allclose(spread[4], [2.0, 1.0, 3.0])
    np.testing.assert_allclose(spread[5], [3.0, 3.0, 3.0])
    steps, spread = a_study(runs, ("v",)).growth("v", 1e-3, "attention_logit_text")
    assert steps == []
    assert spread.shape == (0, 3)


def test_the_page_the_figure_and_the_file_agree(study, tmp_path):
    write_study(tmp_path, study)
    written = json.loads((tmp_path / "stability.json").read_text())
    assert written == json.loads(json.dumps(plain(study)))
    assert [variant["name"] for variant in written["variants"]] == ["plain", "cured"]
    assert written["variants"][1]["best_losses"]["loss"]["mean"] == 3.0
    assert written["variants"][0]["final_losses"]["loss_text"] == [[4.5] * 2, [5.0] * 2, [8.0] * 2]
    assert written["seconds"] == pytest.approx(10 * 10 + 2 * 5)

    page = html.fromstring((tmp_path / "stability.html").read_bytes())
    words = " ".join(page.text_content().split())
    for word in ("12 runs of 100 steps", "1.667", "0.675", "40 %", "1e-2"):
        assert word in words, word
    titles = page.xpath("//figcaption/text()")
    assert titles[:3] == [f"{of}: final loss" for of in ("All targets", "Text", "Images")]
    assert "Largest attention logit, text, at 1e-1" in titles
    assert not any("Output of the last layer" in title for title in titles)  # not reported
    assert len(page.xpath("//figure/svg")) == len(titles)
    [row] = page.xpath("//*[@id='alarms']//tbody/tr[1]")
    cells = [cell.text_content() for cell in row.xpath("td")]
    assert cells == ["plain", "1e-2", "attention_logit", "20", "50", "30", "2 of 2", "0"]

    links = page.xpath("//@src | //@href | //@*[local-name() = 'xlink:href']")
    outside = [link for link in links if not link.startswith("#")]
    assert outside == ["https://arxiv.org/abs/2309.14322"]  # a link, not a resource
    assert not page.xpath("//script | //link")

    figure = PIL.Image.open(io.BytesIO((tmp_path / "stability.png").read_bytes()))
    assert figure.width > figure.height > 500


def test_a_stable_study_of_one_modality_has_a_page(tmp_path):
    lines = [{"step": 10 * i, "time_s": i, "loss": 3.0, "loss_text": 4.0} for i in range(1, 11)]
    start = {"loss": 8.0, "loss_text": 8.0}
    run = StudyRun(start=start, metrics=Metrics(lines), alarms=[], diverged=None)
    study = a_study({("v", rate): run for rate in RATES}, ("v",))
    write_study(tmp_path, study)
    written = json.loads((tmp_path / "stability.json").read_text())
    assert written["variants"][0]["final_losses"]["loss_image"] == [[None] * 2] * 3
    assert written["variants"][0]["relative_sensitivity"] is None
    words = html.fromstring((tmp_path / "stability.html").read_bytes()).text_content()
    assert "There were no alarms and no instability." in words


def test_without_packages_of_pages_the_results_are_kept(study, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    write_study(tmp_path, study)
    assert [path.name for path in tmp_path.iterdir()] == ["stability.json"]
    assert "stability.html, with stability.png) is left out, because matplotlib" in caplog.text


@pytest.mark.parametrize(
    ("rate", "name"), [(0.003, "3e-3"), (0.1, "1e-1"), (0.00015, "1.5e-4"), (2.0, "2e0")]
)
def test_learning_rates_have_short_names(rate, name):
    assert rate_name(rate) == name
