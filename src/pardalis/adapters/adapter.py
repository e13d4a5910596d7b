"""An adapter apart from the model that it was trained on: its values, and merging them."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pardalis import config as configs
from pardalis.adapters.install import targets_of
from pardalis.adapters.kinds import AdapterConfig
from pardalis.adapters.linear import LowRank
from pardalis.adapters.rows import row_ids
from pardalis.errors import BundleError
from pardalis.model import LanguageModel
from pardalis.tokens import Vocabulary

_SAMPLED = 4096  # values of a tensor in a fingerprint
ROWS = ("embedding", "head")  # modules that may have trained rows


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapter:
    """What was trained beside a frozen model, in 32 bits on the CPU."""

    config: AdapterConfig
    # The added parameters of each adapted matrix, by the name of the module and their own.
    linears: Mapping[str, Mapping[str, Tensor]]
    rows: Mapping[str, Tensor] = field(default_factory=dict)  # of "embedding" and of "head"
    row_ids: Sequence[int] = ()  # the tokens of the rows, ascending
    base: str | None = None  # fingerprint of the model; None: unknown

    @property
    def n_parameters(self) -> int:
        tensors = [tensor for each in self.linears.values() for tensor in each.values()]
        return sum(tensor.numel() for tensor in (*tensors, *self.rows.values()))

    @property
    def digest(self) -> str:
        """A hash of all values and of what they are multiplied by."""
        digest = hashlib.sha256(configs.fingerprint(self.config, list(self.row_ids)).encode())
        for name, each in sorted({**self.linears, "rows": self.rows}.items()):
            for key, value in sorted(each.items()):
                digest.update(f"{name}.{key} {tuple(value.shape)} ".encode())
                digest.update(value.contiguous().numpy().tobytes())
        return digest.hexdigest()[:32]

    def low_rank(self, name: str, weight: Tensor) -> LowRank:
        """Return what the adapter makes of the matrix of a module, on the device of the matrix."""
        factors = {key: value.to(weight.device) for key, value in self.linears[name].items()}
        return self.config.low_rank(weight, factors)

    def require_fits(self, model: LanguageModel, what: str = "The adapter") -> None:
        """Raise BundleError unless the adapter was trained on this model.

        Args:
            what: the beginning of the message.
        """
        if self.base is not None and self.base != base_fingerprint(model):
            raise BundleError(
                f"{what} was trained on another model than this bundle's; give the bundle that its "
                "training started from."
            )
        modules = dict(model.named_modules())
        for name, factors in self.linears.items():
            module = modules.get(name)
            if not isinstance(module, torch.nn.Linear) or module is model.head:
                raise BundleError(
                    f"{what} adapts {name}, which the bundle's model does not have; give the "
                    "bundle that its training started from."
                )
            sizes = {"inputs": module.in_features, "outputs": module.out_features}
            for key, factor in self.config.factors.items():
                dimension = 1 if factor.follows == "inputs" else 0
                found = factors[key].shape[dimension : dimension + 1]
                if found != (sizes[factor.follows],):
                    raise BundleError(
                        f"{what} has {key} of the shape {list(factors[key].shape)} for {name}, "
                        f"which has {sizes['inputs']} inputs and {sizes['outputs']} outputs; give "
                        "the bundle that its training started from."
                    )
        size, width = model.config.vocab_size, model.config.d_model
        for name, rows in self.rows.items():
            if rows.shape[1] != width or self.row_ids[-1] >= size:
                raise BundleError(
                    f"{what} has rows of {name} for tokens up to {self.row_ids[-1]}, of width "
                    f"{rows.shape[1]}, but the model has {size} of width {width}; give the bundle "
                    "that its training started from."
                )


def adapter_of(
    config: AdapterConfig,
    model: LanguageModel,
    vocabulary: Vocabulary,
    trained: Mapping[str, Tensor],
) -> Adapter:
    """Return the adapter of a model that was trained by :func:`pardalis.adapters.install`.

    Args:
        model: the model without adapter, with its weights.
        trained: the parameters that were trained, by name.
    """
    linears = {
        name: {key: trained[f"{name}.{key}"] for key in config.factors}
        for name in targets_of(model, config.targets)
    }
    rows = {name: trained[f"{name}.rows"] for name in ROWS if f"{name}.rows" in trained}
    ids = row_ids(config.rows, vocabulary)
    return Adapter(
        config=config, linears=linears, rows=rows, row_ids=ids, base=base_fingerprint(model)
    )


@torch.no_grad()
def merge(model: LanguageModel, adapter: Adapter) -> LanguageModel:
    """Write an adapter into the weights of a model, in place and in their dtype; return the model.

    Raises:
        BundleError: the adapter was trained on another model.
    """
    adapter.require_fits(model)
    modules = dict(model.named_modules())
    for name in adapter.linears:
        weight = modules[name].weight
        assert isinstance(weight, Tensor)
        weight.copy_(adapter.low_rank(name, weight).merged(weight))
    ids = torch.tensor(adapter.row_ids, dtype=torch.long, device=model.device)
    for name, rows in adapter.rows.items():
        matrix = modules[name].weight
        assert isinstance(matrix, Tensor)
        matrix[ids] = rows.to(matrix)
    return model


@torch.no_grad()
def base_fingerprint(model: LanguageModel) -> str:
    """Return a hash of the names, the shapes and 4,096 values of all tensors of a model.

    The values are rounded to bfloat16, so that the dtype in which a bundle is loaded changes
    nothing.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().flatten()
        step = max(flat.numel() // _SAMPLED, 1) | 1  # odd, to reach all columns of an even width
        values = flat[::step][:_SAMPLED].to("cpu", torch.bfloat16).contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} ".encode())
        digest.update(values.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]
