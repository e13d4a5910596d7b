import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

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


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("name=x", "Unknown key 'name'; did you mean 'inner.name' or 'maybe.name'?"),
        ("inner.flag=1", "Unknown key 'inner.flag'; did you mean 'flag'?"),
        ("stepz=1", "Unknown key 'stepz'; did you mean 'steps'?"),
        ("inner.zzz=1", "Unknown key 'inner.zzz'; known keys are kind, name, weight."),
        ("items={name='a'}", "items must be a list, got {'name': 'a'}; write [[items]] in TOML."),
        ("items=3", "items must be a list, got 3."),
    ],
)
def test_a_key_of_another_table_is_found(tmp_path, override, message):
    (tmp_path / "recipe.toml").write_text("steps = 1\n[inner]\nname = 'a'\n")
    with pytest.raises(ConfigError) as refused:
        configs.load(Outer, tmp_path / "recipe.toml", [override])
    assert str(refused.value) == message


def test_a_sentence_of_a_config_does_not_continue_its_place(monkeypatch):
    def refuse(self):
        raise ConfigError("The weight of a name must be even.")

    monkeypatch.setattr(Inner, "__post_init__", refuse)
    with pytest.raises(ConfigError, match=r"^inner: The weight of a name must be even\.$"):
        configs.from_dict(Outer, {"steps": 1, "inner": {"name": "a"}})


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


# ── unions ───────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, kw_only=True, slots=True)
class Circle:
    kind: Literal["circle"] = "circle"
    radius: float = 1.0

    def __post_init__(self) -> None:
        if self.radius < 0:
            raise ConfigError(f"radius must be 0 or more, got {self.radius}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Square:
    kind: Literal["square"] = "square"
    side: float
    colour: str = "red"


OPEN = configs.Kinds(Circle)


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawing:
    shape: Circle | Square = field(default_factory=Circle)
    maybe: Circle | Square | None = None
    many: tuple[Circle | Square, ...] = ()
    open: Annotated[Any, OPEN] = field(default_factory=Circle)
    path: Path | None = None


def test_kind_chooses_the_config():
    built = configs.from_dict(
        Drawing,
        {
            "shape": {"kind": "square", "side": 2},
            "maybe": {"kind": "circle"},
            "many": [{"kind": "square", "side": 1}, {"radius": 3}],
        },
    )
    assert built.shape == Square(side=2.0)
    assert built.maybe == Circle()
    assert built.many == (Square(side=1.0), Circle(radius=3.0))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"shape": {"kind": "sqare", "side": 2}},
            "shape.kind must be one of 'circle', 'square', got 'sqare'; did you mean 'square'?",
        ),
        ({"shape": {"kind": 3}}, "shape.kind must be one of 'circle', 'square', got 3."),
        ({"shape": {"kind": "square"}}, "shape.side is missing; it has no default"),
        (
            {"shape": {"kind": "circle", "side": 2}},
            "Unknown key 'shape.side' for kind 'circle'; it is a key of 'square'.",
        ),
        ({"shape": {"side": 2}}, "for kind 'circle'; it is a key of 'square'"),
        ({"shape": {"radus": 2}}, "Unknown key 'shape.radus'; did you mean 'radius'?"),
        ({"many": [{"radius": -1}]}, "many.0.radius must be 0 or more, got -1.0."),
        ({"shape": "circle"}, "shape must be a table, got 'circle'"),
        ({"path": 3}, "path must be a path, got 3"),
        ({"path": ""}, "path must be a path, got ''"),
    ],
)
def test_errors_of_unions_and_paths_name_place_and_kinds(values, message):
    with pytest.raises(ConfigError) as caught:
        configs.from_dict(Drawing, values)
    assert message in str(caught.value)


def test_a_table_of_kinds_is_open():
    @dataclass(frozen=True, kw_only=True, slots=True)
    class Star:
        kind: Literal["star"] = "star"
        points: int = 5

    with pytest.raises(ConfigError, match=r"open\.kind must be one of 'circle', got 'star'"):
        configs.from_dict(Drawing, {"open": {"kind": "star"}})
    OPEN.add(Star)
    assert configs.from_dict(Drawing, {"open": {"kind": "star", "points": 7}}).open == Star(
        points=7
    )
    OPEN.add(Star)  # again: nothing changes

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Other:
        kind: Literal["star"] = "star"

    with pytest.raises(ConfigError, match="Other has the kind 'star', as Star has"):
        OPEN.add(Other)
    with pytest.raises(ConfigError, match="Outer needs a field `kind`"):
        OPEN.add(Outer)


def test_unions_and_paths_survive_toml(tmp_path):
    drawing = Drawing(shape=Square(side=2.0), path=Path("a/b"), many=(Circle(), Square(side=1.0)))
    assert configs.load(Drawing, write(tmp_path, configs.to_toml(drawing))) == drawing
    assert configs.fingerprint(drawing) != configs.fingerprint(Drawing(path=Path("a/b")))
    json.dumps(configs.deciding(drawing))


def test_an_override_may_change_the_kind(tmp_path):
    path = write(tmp_path, '[shape]\nkind = "square"\nside = 2')
    with pytest.raises(ConfigError, match="it is a key of 'square'"):
        configs.load(Drawing, path, ["shape.kind=circle"])
    assert configs.load(Drawing, path, ["shape={kind='circle'}"]).shape == Circle()


def test_merging_drops_the_values_of_another_kind():
    base = {"shape": {"kind": "square", "side": 2, "colour": "blue"}, "n": 1}
    assert configs.merged(base, {"shape": {"colour": "red"}}) == {
        "shape": {"kind": "square", "side": 2, "colour": "red"},
        "n": 1,
    }
    assert configs.merged(base, {"shape": {"kind": "circle"}})["shape"] == {"kind": "circle"}
    assert base["shape"]["colour"] == "blue"


def test_relative_paths_begin_at_a_folder(tmp_path):
    @dataclass(frozen=True, kw_only=True, slots=True)
    class Holder:
        drawings: tuple[Drawing, ...]
        path: Path

    holder = Holder(drawings=(Drawing(path=Path("x")), Drawing()), path=Path("{run}/y"))
    placed = configs.located(holder, tmp_path, stays=lambda path: path.parts[0] == "{run}")
    assert placed.drawings[0].path == tmp_path / "x"
    assert placed.drawings[1].path is None
    assert placed.path == Path("{run}/y")
    absolute = Drawing(path=Path("/elsewhere"))
    assert configs.located(absolute, tmp_path).path == Path("/elsewhere")


def test_old_keys_move_to_their_tables():
    values = {"a": 1, "t": {"old": {"x": 1}, "new": {"y": 2}}}
    found = configs.rename(values, {"a": "t.b.c", "t.old": "t.new", "gone": "t.z"})
    assert values == {"t": {"new": {"y": 2, "x": 1}, "b": {"c": 1}}}
    assert found == ["a is now t.b.c", "t.old is now t.new"]
    with pytest.raises(ConfigError, match="which are the same; leave a out"):
        configs.rename({"a": 1, "b": 2}, {"a": "b"}, "recipe.toml")
