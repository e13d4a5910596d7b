"""The checks under which the suite runs find what is wrong in a call, and nothing else."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from checks import checked
from jaxtyping import Float, Int, TypeCheckError
from torch import Tensor

from pardalis.documents import Text


@checked
@dataclass
class Ids:
    ids: Int[Tensor, "T"]


@checked
def added(left: Float[Tensor, "B T"], right: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    return left + right


@checked
def first(values: Float[Tensor, "B T"], n: int) -> Float[Tensor, "B"]:
    return values[:n, 0]


@checked
def square(side: int) -> Float[Tensor, "{side} {side}"]:
    return torch.ones(side, 2)


@checked
def named(value: "list[Ids]", other: "Absent") -> "list[Ids]":
    return value


@checked
def counted(n: int) -> Iterator[int]:
    yield from range(n)


ONES = torch.ones(2, 3)


def test_right_calls_pass():
    assert added(ONES, ONES).sum() == 12
    assert added(torch.ones(4, 1), torch.ones(4, 1)).shape == (4, 1)  # T differs between calls
    assert first(ONES, 2).shape == (2,)
    assert square(2).shape == (2, 2)
    assert named([], None) == []
    assert list(counted(2)) == [0, 1]


@pytest.mark.parametrize(
    "call",
    [
        lambda: added(ONES, torch.ones(2, 4)),
        lambda: added(ONES, ONES.int()),
        lambda: first(ONES, 1),  # B of the result
        lambda: first(ONES, "1"),
        lambda: square(3),
        lambda: named([1], None),
        lambda: next(counted("1")),
        lambda: Ids(ONES),
        lambda: Ids(torch.tensor([[1]])),
    ],
)
def test_wrong_calls_raise(call):
    with pytest.raises(TypeCheckError):
        call()


def test_the_package_is_checked():
    with pytest.raises(TypeCheckError):
        Text(1)
