import torch

from pardalis.batch import Batch


def test_to_moves_every_tensor():
    shape = (2, 3)
    ids = torch.zeros(shape, dtype=torch.int64)
    batch = Batch(ids, ids, torch.zeros(shape), ids, ids).to("meta")
    tensors = (batch.ids, batch.targets, batch.weights, batch.positions, batch.documents)
    assert all(tensor.device.type == "meta" and tensor.shape == shape for tensor in tensors)
