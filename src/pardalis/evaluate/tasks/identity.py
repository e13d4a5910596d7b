"""Which model was evaluated: a hash of its weights and of all that turns documents into tokens."""

import hashlib

import torch

from pardalis import config as configs
from pardalis.bundle import Bundle


def bundle_digest(bundle: Bundle) -> str:
    """Return a hash of a bundle as it was loaded: another dtype is another model.

    Copies, other names and other facts of the same model have the same hash.
    """
    digest = hashlib.sha256(bundle.codec.fingerprint.encode())
    digest.update(configs.fingerprint(bundle.model.config).encode())
    for name, tensor in sorted(bundle.model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
        digest.update(flat.numpy().data)
    return digest.hexdigest()[:16]
