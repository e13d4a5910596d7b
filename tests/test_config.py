import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from pardalis import config as configs
from pardalis.errors import ConfigError, PardalisError, RequestError

ERRORS: dict[str, type[PardalisError]] = {"a": ConfigError, "b": RequestError}


@dataclass(frozen=True, kw_only=True, slots=True)
class Inner:
    name: str
    weight: float = 1.0
    kind: Literal["a", "b"] = "a"

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ERRORS[self.kind](f"weight must be 0 or more, got {self.weight}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Outer:
    steps: int
    inner: Inner = field(default_factory=lambda: Inner(name="x"))
    items: tuple[Inner, ...] = ()
    pair: tuple[float, float] = (0.9, 0.95)
    maybe: Inner | None = None
    free: dict[str, Any] = field(default_factory=dict)
    flag: bool = False


def test_builds_nested_configs():
    built = configs.from_dict(
        Outer,
        {
            "steps": 3,
            "inner": {"name": "q", "weight": 2},
            "items": [{"name": "a"}, {"name": "b", "kind": "b"}],
            "pair": [1, 2],
            "maybe": {"name": "m"},
            "free": {"any": [1, "thing"]},
        },
    )
    assert built == Outer(
        steps=3,
        inner=Inner(name="q", weight=2.0),
        items=(Inner(name="a"), Inner(name="b", kind="b")),
        pair=(1.0, 2.0),
        maybe=Inner(name="m"),
        free={"any": [1, "thing"]},
    )
    assert type(built.inner.weight) is float


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stepz": 5}, "Unknown key 'stepz'; did you mean 'steps'?"),
        ({"steps": 1, "zzz": 5}, "Unknown key 'zzz'; known keys are flag, free, inner, items"),
        ({"steps": 1, "inner": {"nam": "a"}}, "Unknown key 'inner.nam'; did you mean 'name'?"),
        ({"steps": 1, "items": [{"name": "a", "knd": "b"}]}, "Unknown key 'items.0.knd'"),
        ({}, "steps is missing; it has no default"),
        ({"steps": 1, "maybe": {}}, "maybe.name is missing"),
        ({"steps": "five"}, "steps must be of type int, got 'five'"),
        ({"steps": 5.5}, "steps must be of type int, got 5.5"),
        ({"steps": True}, "steps must be of type int, got True"),
        ({"steps": 1, "flag": 1}, "flag must be of type bool, got 1"),
        ({"steps": 1, "inner": 3}, "inner must be a table, got 3"),
        ({"steps": 1, "free": 3}, "free must be a table, got 3"),
        ({"steps": 1, "items": "a"}, "items must be a list, got 'a'"),
        ({"steps": 1, "pair": [1.0]}, "pair must have 2 items, got 1"),
        (
            {"steps": 1, "inner": {"name": "a", "kind": "c"}},
            "inner.kind must be one of 'a', 'b', got 'c'",
        ),
    ],
)
def test_refuses_what_it_does_not_understand(values, message):
    with pytest.raises(ConfigError) as caught:
        configs.from_dict(Outer, values)
    assert message in str(caught.value)


@pytest.mark.parametrize("kind", ERRORS)
def test_what_a_constructor_refuses_is_named_by_its_place(kind):
    wrong = {"name": "a", "weight": -1, "kind": kind}
    for values, place in (
        ({"inner": wrong}, "inner."),
        ({"items": [{"name": "b"}, wrong]}, "items.1."),
    ):
        with pytest.raises(ConfigError) as caught:
            configs.from_dict(Outer, {"steps": 1, **values})
        assert str(caught.value) == f"{place}weight must be 0 or more, got -1.0."


def write(tmp_path, text):
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return path


def test_overrides(tmp_path):
    path = write(tmp_path, 'steps = 1\n[inner]\nname = "a"\n[[items]]\nname = "b"')
    built = configs.load(
        Outer, path, ["steps=20", "inner.name=owl of Athena", "items.0.weight=0.5",
                      "maybe.name='m'", "pair=[0.1, 0.2]", "flag=true"],
    )  # fmt: skip
    assert built.steps == 20
    assert built.inner.name == "owl of Athena"
    assert built.items[0].weight == 0.5
    assert built.maybe == Inner(name="m")
    assert built.pair == (0.1, 0.2)
    assert built.flag


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps", "has the form key.key=value, got 'steps'"),
        ("steps.deeper=1", "steps is the value 1, not a table"),
        ("items.3.name=a", "expected an index below 1, got '3'"),
        ("inner.nam=a", "did you mean 'name'"),
    ],
)
def test_bad_overrides(tmp_path, override, message):
    path = write(tmp_path, 'steps = 1\n[[items]]\nname = "b"')
    with pytest.raises(ConfigError) as caught:
        configs.load(Outer, path, [override])
    assert message in str(caught.value)


def test_a_missing_recipe(tmp_path):
    with pytest.raises(ConfigError, match="No recipe at"):
        configs.load(Outer, tmp_path / "none.toml")


def test_a_folder_as_recipe(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot be read \(Is a directory\); give the path of a"):
        configs.load(Outer, tmp_path)


def test_a_recipe_that_is_not_toml(tmp_path):
    with pytest.raises(ConfigError, match="is not a TOML file that can be read"):
        configs.load(Outer, write(tmp_path, "steps = = 3"))


def test_a_resolved_config_reads_back_equal(tmp_path):
    config = Outer(steps=3, items=(Inner(name="a", weight=1e-5),), free={"preset": "tiny"})
    for written in (config, dataclasses.replace(config, maybe=Inner(name="m", kind="b"))):
        path = write(tmp_path, configs.to_toml(written))
        assert configs.load(Outer, path) == written


def test_fingerprints_change_with_any_value():
    config = Outer(steps=3)
    same = configs.fingerprint(config, "x")
    assert same == configs.fingerprint(Outer(steps=3), "x")
    changed = dataclasses.replace(config, inner=Inner(name="x", weight=1.0001))
    assert len({same, configs.fingerprint(changed, "x"), configs.fingerprint(config, "y")}) == 3


@dataclass(frozen=True, kw_only=True)
class Measured:
    learning_rate: float = 0.1
    report_every: int = configs.not_deciding(10)
    folder: str = configs.not_deciding()
    inner: Inner | None = None


def test_only_some_fields_decide_results():
    before = Measured(folder="a", report_every=3)
    assert configs.to_dict(before) == {"learning_rate": 0.1, "report_every": 3, "folder": "a"}
    assert configs.deciding(before) == {"learning_rate": 0.1}
    assert configs.deciding({"all": (before, 7)}) == {"all": [{"learning_rate": 0.1}, 7]}
    with pytest.raises(ConfigError, match="folder is missing"):
        configs.from_dict(Measured, {})


@dataclass(frozen=True, kw_only=True)
class Renamed:
    tokens: int = 0
    inner: Inner | None = None


RENAMED = {"n_ids": "tokens", "table.breadth": "inner.weight", "table": "inner"}


@pytest.mark.parametrize(
    "text", ["n_ids = 3\n[table]\nbreadth = 4.0", "tokens = 3\n[inner]\nweight = 4.0"]
)
def test_names_of_earlier_versions_are_read(tmp_path, text, caplog):
    path = tmp_path / "old.toml"
    path.write_text(text)
    change = "table.name=owl"
    found = configs.load(Renamed, path, [change], RENAMED)
    assert (found.tokens, found.inner.weight, found.inner.name) == (3, 4.0, "owl")
    warned = "n_ids is now tokens; table.breadth is now inner.weight" in caplog.text
    assert warned == ("n_ids" in text)
    assert configs.load(Renamed, path, [change, "n_ids=5"], RENAMED).tokens == 5


def test_an_old_and_a_new_name_are_not_mixed(tmp_path):
    path = tmp_path / "both.toml"
    path.write_text("n_ids = 3\ntokens = 3")
    with pytest.raises(ConfigError, match="has n_ids and tokens, which are the same"):
        configs.load(Renamed, path, renamed=RENAMED)
