"""What differs between the inputs of two runs."""

from pardalis.inputs import changes


def test_what_differs_is_named():
    before = {"training": {"seed": 0, "rate": 0.1}, "sources": [1, 2]}
    assert changes(before, before) == ""
    assert changes(before, {**before, "sources": (1, 2)}) == ""
    now = {"training": {"seed": 1, "rate": 0.1}, "sources": [1], "model": "tiny"}
    assert changes(before, now) == (
        "model was absent and is 'tiny'; sources was [1, 2] and is [1]; "
        "training.seed was 0 and is 1"
    )


def test_only_some_are_shown():
    assert changes({}, {str(i): i for i in range(5)}).endswith("2 was absent and is 2 and 2 more")


def test_a_changed_hash_is_a_changed_content():
    a, b = "a" * 64, "b" * 64
    before = {"sources": {"pairs": ["jsonl", a], "old": ["jsonl", a]}, "given": {"x": a}}
    now = {"sources": {"pairs": ["jsonl", b], "new": ["jsonl", a]}, "given": {"x": b}}
    assert changes(before, now) == (
        "the content of given.x changed; sources.new is new; sources.old is gone and 1 more"
    )
    assert changes({"s": ["jsonl", a]}, {"s": ["html", b]}).startswith("s was ['jsonl', 'aaa")
