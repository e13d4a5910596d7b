"""Every tensor of a batch is mapped, moved and cut."""

import torch

from pardalis.batch import Batch, Soft

SHAPE = (3, 4)


def batch() -> Batch:
    ids = torch.arange(12).view(SHAPE)
    return Batch(
        ids=ids,
        targets=ids + 1,
        weights=ids.float(),
        positions=ids + 2,
        documents=ids + 3,
        soft=Soft(torch.zeros(3, 2, dtype=torch.int64), torch.arange(30.0).view(3, 2, 5)),
        extra={"advantages": torch.arange(3.0)},
    )


def tensors(batch: Batch) -> list[torch.Tensor]:
    return [
        batch.ids, batch.targets, batch.weights, batch.positions, batch.documents,
        batch.soft.positions, batch.soft.values, batch.extra["advantages"],
    ]  # fmt: skip


def test_to_moves_every_tensor():
    moved = tensors(batch().to("meta"))
    assert all(tensor.device.type == "meta" for tensor in moved)
    assert [tensor.shape for tensor in moved] == [tensor.shape for tensor in tensors(batch())]


def test_rows_are_cut_from_every_tensor():
    for part, whole in zip(tensors(batch().rows(slice(1, 3))), tensors(batch()), strict=True):
        assert torch.equal(part, whole[1:3])


def test_most_batches_have_neither_vectors_nor_more_tensors():
    ids = torch.zeros(SHAPE, dtype=torch.int64)
    plain = Batch(ids, ids, torch.zeros(SHAPE), ids, ids).rows(slice(1))
    assert plain.soft is None and plain.extra == {}
