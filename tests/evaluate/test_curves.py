import sys

import matplotlib
import numpy as np
import pytest
from lxml import etree

from pardalis.errors import ConfigError
from pardalis.evaluate.curves import Curve, chart, moving_mean


def curves(n: int = 5) -> list[Curve]:
    steps = list(range(n))
    return [
        Curve(label="train & all", steps=steps, values=steps, colour="#2f5d8c"),
        Curve(label="held-out", steps=steps, values=steps, colour="#cf5239", is_held_out=True),
    ]


def test_a_chart_is_one_element_with_text_as_text():
    svg = chart(curves(), "loss <nats>")
    root = etree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    words = "".join(root.itertext())
    for word in ("train & all", "held-out", "loss <nats>", "step"):
        assert word in words
    assert root.get("aria-label") == "loss <nats> over steps"
    assert root.get("width") is None
    assert "font-family" not in svg
    assert "<style" not in svg


def test_charts_on_one_page_share_no_ids():
    first, second = (
        set(etree.fromstring(chart(curves(), "loss")).xpath("//@id")) for _ in range(2)
    )
    assert first
    assert not first & second


def test_every_reference_in_a_chart_resolves():
    root = etree.fromstring(chart(curves(100), "loss"))
    ids = set(root.xpath("//@id"))
    links = root.xpath("//@xlink:href", namespaces={"xlink": "http://www.w3.org/1999/xlink"})
    assert {link.removeprefix("#") for link in links} <= ids


def test_empty_curves_are_left_out():
    empty = Curve(label="nothing", steps=[], values=[], colour="red")
    assert "nothing" not in chart([empty, *curves()], "loss")
    assert chart([empty], "loss").startswith("<svg")


def test_global_settings_are_unchanged():
    before = dict(matplotlib.rcParams)
    chart(curves(), "loss")
    assert dict(matplotlib.rcParams) == before


def test_moving_mean_keeps_lines_and_smooths_noise():
    line = np.arange(20.0)
    np.testing.assert_allclose(moving_mean(line, 3), line)
    np.testing.assert_allclose(moving_mean(np.array([0.0, 3.0, 0.0, 3.0, 0.0]), 1), [0, 1, 2, 1, 0])


def test_missing_matplotlib_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(
        ConfigError, match=r"The report needs the package 'matplotlib'.*pardalis\[report\]"
    ):
        chart(curves(), "loss")
