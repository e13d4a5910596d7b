"""Losses add exactly, over micro-batches and ranks, and quotients of their sums are means."""

import dataclasses

import pytest
import torch

from pardalis.objectives import Loss, masks_by_modality
from pardalis.parallel import Layout, World


def loss(*numbers: float, names: str = "ab") -> Loss:
    total, count, *rest = map(torch.tensor, map(float, numbers))
    return Loss(
        total, count, dict(zip(names, zip(rest[::2], rest[1::2], strict=True), strict=True))
    )


def test_losses_add():
    assert loss(1, 2, 3, 4, 5, 6) + loss(10, 20, 30, 40, 50, 60) == loss(11, 22, 33, 44, 55, 66)


def test_losses_of_other_names_do_not_add():
    with pytest.raises(ValueError, match="Only one of two losses has the sums a, c;"):
        loss(1, 2, 3, 4, 5, 6) + loss(1, 2, 3, 4, 5, 6, names="bc")


def test_means_are_quotients_and_name_the_loss():
    means = loss(6, 2, 0, 0, 5, 10).means()
    assert means.pop("a").isnan()
    assert means == {"loss": 3.0, "b": 0.5}
    assert loss(6, 2, 8, 2, names=["loss"]).means() == {"loss": 4.0}


def test_without_its_graph_a_loss_has_the_same_numbers():
    total = torch.tensor(2.0, requires_grad=True)
    whole = Loss(total, torch.tensor(1.0), {"a": (total * 2, torch.tensor(3.0))})
    plain = whole.detach()
    assert plain == whole
    assert not plain.total.requires_grad and not plain.sums["a"][0].requires_grad


def test_auxiliary_losses_are_added_to_the_mean():
    before = loss(6, 4, 1, 2, 3, 4)
    value = torch.tensor(0.5, requires_grad=True)
    found = before.with_auxiliary({"balance": [value, torch.tensor(1.0)]})
    assert found.total == 6 + 4 * 1.5 and found.count == 4
    assert found.means() == {"loss": 3.0, "a": 0.5, "b": 0.75, "balance": 1.5}
    found.total.backward()
    assert value.grad == 4
    assert "balance" not in before.sums
    assert before.with_auxiliary({}) == before


@dataclasses.dataclass(frozen=True, slots=True)
class Doubled(Layout):
    """The layout of two ranks with equal numbers."""

    def sum(self, tensor):
        return 2 * tensor


def test_the_sum_over_ranks_does_not_depend_on_the_order_of_names():
    found = loss(1, 2, 3, 4, 5, 6, names="ba").over_ranks(Doubled(World()))
    assert found == loss(2, 4, 6, 8, 10, 12, names="ba")
    assert list(found.sums) == ["b", "a"]
    assert loss(1, 2, 3, 4, names="a").over_ranks(Layout.alone()) == loss(1, 2, 3, 4, names="a")


def test_text_is_what_is_of_no_other_modality():
    ids = torch.tensor([[0, 3, 4], [5, 8, 9]])
    masks = masks_by_modality(
        ids, {"image": range(3, 5), "text": range(9, 12), "audio": range(5, 6)}
    )
    assert {name: ids[mask].tolist() for name, mask in masks.items()} == {
        "text": [0, 8, 9],
        "image": [3, 4],
        "audio": [5],
    }
    assert next(iter(masks)) == "text"
    assert masks_by_modality(ids, {})["text"].all()
