"""The judge of drawn scenes is right on all that can be drawn, and on most that are disturbed."""

import io
import itertools

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ImageDraw, ImageFilter

from pardalis import config
from pardalis.documents.scenes import PALETTE, RELATIONS, SHAPES, Group, Scene, draw_scene
from pardalis.errors import ConfigError
from pardalis.evaluate.metrics import composition
from pardalis.evaluate.metrics.composition import find_objects, judge

# Plain values: type checks of what strategies build would draw random numbers of their own.
colours, shapes = st.sampled_from([None, *PALETTE]), st.sampled_from([None, *SHAPES])
groups = st.tuples(st.integers(1, 3), colours, shapes)
single = st.tuples(st.just(1), colours, shapes)
scenes = st.one_of(
    st.tuples(st.lists(groups, min_size=1, max_size=3), st.none()),
    st.tuples(st.tuples(single, single), st.sampled_from(RELATIONS)),
)


def scene_of(groups, relation) -> Scene:
    made = tuple(Group(count=n, colour=colour, shape=shape) for n, colour, shape in groups)
    return Scene(groups=made, relation=relation)


def generator(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@settings(max_examples=25, deadline=None)
@given(scenes, st.integers(0, 10**6), st.sampled_from([64, 96, 200]))
def test_what_is_drawn_is_judged_right(values, seed, side):
    scene = scene_of(*values)
    verdict = judge(draw_scene(scene, side, generator(seed)), scene)
    assert verdict.right
    assert verdict.count and verdict.colours and verdict.shapes and verdict.relation


def test_every_colour_and_shape_is_told_from_the_others():
    for seed, (colour, shape) in enumerate(itertools.product(PALETTE, SHAPES)):
        scene = Scene(groups=(Group(colour=colour, shape=shape),))
        image = draw_scene(scene, 64, generator(seed))
        [found] = find_objects(image)
        assert (found.colour, found.shape) == (colour, shape)


@pytest.mark.parametrize("count", [1, 4, 9, 16])
def test_counts(count):
    scene = Scene(groups=(Group(count=count, colour="blue", shape="circle"),))
    image = draw_scene(scene, 128, generator(count))
    assert judge(image, scene).right
    for other in {max(1, count - 1), min(16, count + 1)} - {count}:
        verdict = judge(image, Scene(groups=(Group(count=other, colour="blue"),)))
        assert not verdict.count and not verdict.right


def test_relations_exclude_their_opposites():
    opposite = dict(zip(RELATIONS, ("right of", "left of", "below", "above"), strict=True))
    pair = Group(colour="red", shape="square"), Group(colour="blue", shape="circle")
    for seed, relation in enumerate(RELATIONS):
        image = draw_scene(Scene(groups=pair, relation=relation), 96, generator(seed))
        for other in RELATIONS:
            if other == opposite[relation]:
                assert not judge(image, Scene(groups=pair, relation=other)).relation
        swapped = Scene(groups=pair[::-1], relation=opposite[relation])
        assert judge(image, swapped).right


def jpeg(image: PIL.Image.Image) -> PIL.Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=30)
    return PIL.Image.open(file)


def noise(image: PIL.Image.Image) -> PIL.Image.Image:
    pixels = np.asarray(image, float)
    noisy = pixels + generator(0).normal(0, 20, pixels.shape)
    return PIL.Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def blur(image: PIL.Image.Image) -> PIL.Image.Image:
    return image.filter(ImageFilter.GaussianBlur(1.0))


@pytest.mark.parametrize("disturb", [jpeg, noise, blur])
def test_most_disturbed_scenes_are_judged_right(disturb):
    generator_ = generator(1)
    named = [Group(colour=c, shape=s) for c, s in itertools.product(PALETTE, SHAPES)]
    right = []
    for i, group in enumerate(named):
        other = named[(i + 5) % len(named)]
        scene = (
            Scene(groups=(group, other), relation=RELATIONS[i % 4])
            if i % 2
            else Scene(groups=(Group(count=1 + i % 5, colour=group.colour, shape=group.shape),))
        )
        right.append(judge(disturb(draw_scene(scene, 64, generator_)), scene).right)
    assert np.mean(right) >= 0.95


def test_wrong_scenes_are_judged_by_their_parts():
    image = PIL.Image.new("RGB", (64, 64), "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle((5, 20, 22, 37), fill=PALETTE["red"])
    draw.ellipse((36, 20, 54, 38), fill=PALETTE["blue"])

    def verdict(*named: Group, **more):
        return judge(image, Scene(groups=named, **more))

    square, circle = Group(colour="red", shape="square"), Group(colour="blue", shape="circle")
    assert verdict(square, circle, relation="left of").right
    wrong = verdict(square, circle, relation="above")
    assert wrong.count and wrong.colours and wrong.shapes and not wrong.relation
    swapped = verdict(Group(colour="blue", shape="square"), Group(colour="red", shape="circle"))
    assert swapped.colours and swapped.shapes and not swapped.right
    assert not verdict(Group(count=2, shape="circle")).shapes
    assert not verdict(Group(count=2, colour="red")).colours
    assert not verdict(square).count
    assert verdict(Group(count=2)).right
    # A wildcard takes what the named groups leave.
    assert verdict(Group(), circle).right and verdict(circle, Group()).right
    assert [each.colour for each in verdict(Group()).found] == ["red", "blue"]


def test_objects_that_touch_are_divided_by_colours():
    image = PIL.Image.new("RGB", (64, 64), "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle((10, 20, 29, 39), fill=PALETTE["green"])
    draw.rectangle((30, 20, 49, 39), fill=PALETTE["purple"])
    assert {(each.colour, each.shape) for each in find_objects(image)} == {
        ("green", "square"),
        ("purple", "square"),
    }


def test_a_square_may_stand_on_its_corner_and_other_shapes_are_none():
    image = PIL.Image.new("RGB", (128, 128), "white")
    draw = ImageDraw.Draw(image)
    draw.polygon([(30, 5), (55, 30), (30, 55), (5, 30)], fill=PALETTE["red"])
    draw.rectangle((70, 20, 120, 30), fill=PALETTE["blue"])
    shapes = {each.colour: each.shape for each in find_objects(image)}
    assert shapes == {"red": "square", "blue": None}


def test_the_background_may_have_another_colour():
    for background in ((20, 20, 20), (214, 39, 40), (120, 130, 120)):
        image = PIL.Image.new("RGB", (64, 64), background)
        ImageDraw.Draw(image).ellipse((20, 20, 44, 44), fill=PALETTE["yellow"])
        [found] = find_objects(noise(image))
        assert (found.colour, found.shape) == ("yellow", "circle")


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 10**6))
def test_parts_hang_together_by_sides(height, width, seed):
    mask = generator(seed).random((height, width)) < 0.55
    parts = composition._parts(mask, 0.0)
    assert (np.sum(parts, axis=0) == mask).all() if parts else not mask.any()
    for part in parts:  # a flood from one pixel reaches the part, and no more of the mask
        flood = np.zeros_like(mask)
        flood[tuple(np.argwhere(part)[0])] = True
        for _ in range(mask.size):
            padded = np.pad(flood, 1)
            flood |= padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
            flood &= mask
        assert (flood == part).all()
    assert composition._parts(mask, mask.size + 1.0) == []


def test_images_without_objects():
    assert find_objects(PIL.Image.new("RGB", (32, 48), "white")) == []
    assert find_objects(PIL.Image.new("RGB", (1, 1))) == []
    assert find_objects(PIL.Image.new("L", (300, 200), 128)) == []


def test_scenes_are_read_from_plain_values_and_have_words():
    values = {"groups": [{"count": 2, "colour": "red", "shape": "circle"}, {"colour": "orange"}]}
    assert config.from_dict(Scene, values).text == "two red circles and an orange object"
    pair = (Group(colour="red", shape="square"), Group(shape="triangle"))
    assert Scene(groups=pair, relation="left of").text == "a red square left of a triangle"
    assert (
        Scene(groups=(*pair, Group(count=3))).text == "a red square, a triangle and three objects"
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"groups": ()}, "1 to 16 objects together"),
        ({"groups": (Group(count=0),)}, r"got \[0\]"),
        ({"groups": (Group(count=9), Group(count=8))}, r"got \[9, 8\]"),
        ({"groups": (Group(count=2),), "relation": "above"}, r"needs two groups .* got \[2\]"),
    ],
)
def test_scenes_that_cannot_be(values, message):
    with pytest.raises(ConfigError, match=message):
        Scene(**values)
