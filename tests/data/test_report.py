import json

from pardalis.data import PrepareReport, Turns, balance
from pardalis.documents import Omission, Rejection
from pardalis.tokens import Encoded, Grammar


def test_tokens_are_counted_by_modality(grammar: Grammar):
    report = PrepareReport("owls", row_tokens=20)
    report.add_written(Encoded.of([0, 20, 21, 5, 8, 9, 10, 11, 4, 6, 2]), grammar)
    report.add_written(Encoded.of([0, 39, 2]), grammar)
    report.add_rows(2)
    assert report.tokens == {"text": 3, "image": 4, "special": 7}
    assert (report.written, report.images, report.rows, report.fill_percent) == (2, 1, 2, 35.0)


def test_rejections_are_counted_by_kind_and_the_first_named():
    report = PrepareReport("owls", row_tokens=20)
    for number in range(8):
        report.add_rejection(Rejection(f"line {number}", "bad-json", "It is not JSON."))
    report.add_rejection(Rejection("owl.png", "truncated", "It ends early."))
    assert report.n_rejected == 9
    assert report.rejected["bad-json"].count == 8
    assert [e["where"] for e in report.rejected["bad-json"].examples] == [
        f"line {number}" for number in range(5)
    ]
    assert report.rejection_summary() == (
        "  8 bad-json, such as line 0: It is not JSON.\n"
        "  1 truncated, such as owl.png: It ends early."
    )


def test_a_report_round_trips_through_json_with_an_invalid_file_name():
    report = PrepareReport("owls", row_tokens=20)
    report.add_rejection(Rejection("\udc80.png", "missing", "There is no \udc80.png."))
    text = json.dumps(report.to_dict(), ensure_ascii=False)
    assert PrepareReport.from_dict(json.loads(text.encode())) == report


def test_a_report_of_an_earlier_version_is_read():
    old = """{"source": "owls", "row_tokens": 64, "read": 3, "split": 0, "written": 2,
        "pictures": 2, "tokens": {"text": 20, "image": 32, "special": 8}, "rows": 1,
        "fill_percent": 93.75, "rejected": {"missing-picture": {"count": 1, "examples":
        [{"where": "a.jsonl:1", "reason": "It is not there."}]}}, "unchanged": false}"""
    report = PrepareReport.from_dict(json.loads(old))
    assert (report.images, report.written, report.n_rejected) == (2, 2, 1)
    assert PrepareReport.from_dict(report.to_dict()) == report


def turns(text: int, image: int, images: int = 1) -> PrepareReport:
    report = PrepareReport("owls", row_tokens=20, rows=10)
    report.turns = Turns(
        answer_tokens=text + image, answer_image_tokens=image, prompt_images=images
    )
    return report


def test_the_balance_is_that_of_the_mixture():
    """A source of weight 3 gives three rows for one of a source of weight 1."""
    reports = {"a": turns(text=300, image=0), "b": turns(text=0, image=100)}
    found = balance(reports, {"a": 1.0, "b": 3.0})
    assert found.image_percent == 50 and found.has_images and not found.warning
    assert balance({"a": PrepareReport("a", 20)}, {"a": 1.0}) is None


def test_one_modality_that_dominates_answers_is_warned_of():
    def warning(**parts: int) -> str:
        return balance({"a": turns(**parts)}, {"a": 1.0}).warning

    assert "4.0 % are of images, so the model learns a preference against" in warning(
        text=96, image=4
    )
    assert "96.0 % are of images, so the model learns a preference for" in warning(text=4, image=96)
    assert "whose answers have images" in warning(text=10, image=0)
    assert not warning(text=95, image=5) and not warning(text=5, image=95)
    assert not warning(text=10, image=0, images=0)  # a model of texts


def test_what_rules_left_out_is_counted_apart():
    report = PrepareReport("pages", 64)
    report.add_rejection(Omission("a.html", "navigation", "Menus are left out.", 3))
    report.add_rejection(Omission("b.html", "navigation", "Menus are left out.", 2))
    assert report.n_rejected == 0
    assert report.left_out["navigation"].count == 5
    assert len(report.left_out["navigation"].examples) == 2
    assert PrepareReport.from_dict(report.to_dict()) == report
