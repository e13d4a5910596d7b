"""Adapters in an engine: several at once, and a token of a batch has one of them or none.

A linear map multiplies all tokens by the matrices A of all adapters together, sets to 0 what is of
another adapter than that of the token, and multiplies by all matrices B. So the shapes of products
do not depend on which adapters a batch uses, and a token's output not on the other tokens. A pass
that uses no adapter computes none of it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from pardalis.adapters import Adapter, LowRank, load_adapter
from pardalis.bundle import Bundle
from pardalis.errors import ConfigError
from pardalis.model import LanguageModel

_MOST = 256  # numbers up to this are exact in bfloat16, in which a hidden state may carry one

Adapters = Mapping[str, Adapter | Path | str]  # adapters, or their folders, by name


def open_adapters(bundle: Bundle, adapters: Adapters | None) -> dict[str, Adapter]:
    """Return the adapters of a bundle, read from their folders, by name.

    Raises:
        BundleError: a folder is no adapter, or one of another model.
        ConfigError: there are too many.
    """
    if adapters is not None and len(adapters) > _MOST:
        raise ConfigError(f"adapters has {len(adapters)} adapters; an engine takes {_MOST}.")
    opened = {}
    for name, adapter in (adapters or {}).items():
        if not isinstance(adapter, Adapter):
            adapter = load_adapter(adapter, bundle.codec.vocabulary)
        adapter.require_fits(bundle.model, f"The adapter {name!r}")
        opened[name] = adapter
    return opened


class LoadedAdapters:
    """The adapters of a model, and which of them the tokens of the current pass use.

    Attributes:
        names: those of the adapters; number 0 is none, and the first has number 1.
        of_token: the number of each token's adapter; None: no token has one.
        in_use: the numbers that the pass has, without 0.
    """

    def __init__(self, adapters: Mapping[str, Adapter], model: LanguageModel) -> None:
        self.names = list(adapters)
        self.dtype = model.head.weight.dtype
        self.device = model.head.weight.device
        self._width = model.head.weight.shape[1]
        self.of_token: Int[Tensor, " T"] | None = None
        self.in_use: frozenset[int] = frozenset()
        self._adapters = list(adapters.values())
        embedding = getattr(model, "embedding", None)
        is_tied = embedding is not None and model.head.weight is embedding.weight
        self._rows_of_head = [
            each.rows.get("embedding" if is_tied else "head") for each in self._adapters
        ]

    def __bool__(self) -> bool:
        return bool(self._adapters)

    @contextmanager
    def using(self, numbers: Sequence[int], of_token: Int[Tensor, " T"] | None) -> Iterator[None]:
        """Set what the tokens of a forward pass use.

        Args:
            numbers: the number of each sequence's adapter.
        """
        self.of_token, self.in_use = of_token, frozenset(numbers) - {0}
        try:
            yield
        finally:
            self.of_token, self.in_use = None, frozenset()

    def around(self, linear: nn.Module, maps: Sequence[tuple[str, Tensor]]) -> nn.Module:
        """Return a product with what the adapters add to it.

        Args:
            linear: computes the products of the maps, without bias, concatenated.
            maps: names and matrices (outputs, inputs) of the maps of the model.
        """
        parts = [
            [each.low_rank(name, w) if name in each.linears else None for name, w in maps]
            for each in self._adapters
        ]
        if not any(part for each in parts for part in each):
            return linear
        sizes = [len(weight) for _, weight in maps]
        return _AdaptedProduct(linear, self, parts, sizes)

    def around_embedding(self, embedding: nn.Module) -> nn.Module:
        """Return an embedding in which the adapters have rows of their own."""
        if not any("embedding" in each.rows for each in self._adapters):
            return embedding
        return _AdaptedEmbedding(embedding, self, self._adapters)

    def around_head(self, part: nn.Module, ids: Int[Tensor, " n"]) -> nn.Module:
        """Return a part of the head, with the given tokens, in which adapters have their rows."""
        own = {}
        if all(rows is None for rows in self._rows_of_head):
            return part
        for number, (adapter, rows) in enumerate(
            zip(self._adapters, self._rows_of_head, strict=True), 1
        ):
            if rows is None:
                continue
            place = {token: n for n, token in enumerate(adapter.row_ids)}
            columns = [n for n, token in enumerate(ids.tolist()) if token in place]
            if columns:
                chosen = rows[[place[token] for token in ids[columns].tolist()]]
                own[number] = torch.tensor(columns, device=self.device), self._stored(chosen)
        return _AdaptedHeadPart(part, self._width, own)

    def marked(self, hidden: Float[Tensor, "T D"]) -> Float[Tensor, "T width"]:
        """Append the number of its adapter to each hidden state, if the head depends on it."""
        if self.of_token is None or all(self._rows_of_head[n - 1] is None for n in self.in_use):
            return hidden
        return torch.cat([hidden, self.of_token[:, None].to(hidden.dtype)], dim=1)

    def _stored(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, self.dtype)


class _AdaptedProduct(nn.Module):
    """One or more linear maps of the same input, and their adapters."""

    def __init__(
        self,
        linear: nn.Module,
        adapters: LoadedAdapters,
        parts: Sequence[Sequence[LowRank | None]],
        sizes: Sequence[int],
    ) -> None:
        from pardalis.inference.weights import linear_map

        super().__init__()
        self.linear, self.adapters = linear, adapters
        a, owners, columns = [], [], []
        scales = torch.ones(1 + len(parts), sum(sizes), device=adapters.device)
        for number, maps in enumerate(parts, 1):
            start = 0
            for part, size in zip(maps, sizes, strict=True):
                if part is not None:
                    a.append(part.a)
                    owners += [number] * len(part.a)
                    columns.append(F.pad(part.b, (0, 0, start, sum(sizes) - start - size)))
                    if part.scale is not None:
                        scales[number, start : start + size] = part.scale
                start += size
        self.a = self.b = None
        if owners:  # a kind of adapter may have a scale alone
            self.a = linear_map(adapters._stored(torch.cat(a)))
            self.b = linear_map(adapters._stored(torch.cat(columns, dim=1)))
        self.owners = torch.tensor(owners, device=adapters.device)
        self.scales = adapters._stored(scales) if bool((scales != 1).any()) else None

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        product: Tensor = self.linear(x)
        of_token = self.adapters.of_token
        if of_token is None:
            return product
        if self.scales is not None:
            product = product * self.scales[of_token]
        if self.a is None or self.b is None:
            return product
        inner = self.a(x).masked_fill(of_token[:, None] != self.owners, 0)
        added: Tensor = product + self.b(inner)
        return added


class _AdaptedEmbedding(nn.Module):
    """An embedding in which the adapters have rows of their own."""

    def __init__(
        self, embedding: nn.Module, bank: LoadedAdapters, adapters: Sequence[Adapter]
    ) -> None:
        super().__init__()
        self.embedding, self.adapters = embedding, bank
        n_tokens = len(cast(Tensor, embedding.weight))
        places = torch.full((1 + len(adapters), n_tokens), -1, dtype=torch.int32)
        rows, before = [], 0
        for number, adapter in enumerate(adapters, 1):
            if (own := adapter.rows.get("embedding")) is not None:
                places[number, list(adapter.row_ids)] = before + torch.arange(
                    len(own), dtype=torch.int32
                )
                before += len(own)
                rows.append(own)
        self.places = places.to(bank.device)
        self.rows = bank._stored(torch.cat(rows))

    def forward(self, ids: Int[Tensor, "1 T"]) -> Float[Tensor, "1 T D"]:
        embedded: Tensor = self.embedding(ids)
        of_token = self.adapters.of_token
        if of_token is None:
            return embedded
        places = self.places[of_token, ids]
        own = self.rows[places.clamp(min=0)]
        return torch.where((places >= 0)[..., None], own, embedded)


class _AdaptedHeadPart(nn.Module):
    """Logits of some tokens, in which the adapters have rows of their own.

    Args:
        width: that of hidden states without the number of an adapter.
        own: by the number of the adapter, the columns of its rows, and the rows.
    """

    def __init__(
        self, part: nn.Module, width: int, own: Mapping[int, tuple[Tensor, Tensor]]
    ) -> None:
        from pardalis.inference.weights import linear_map

        super().__init__()
        self.part, self.width = part, width
        self.own = {number: (columns, linear_map(rows)) for number, (columns, rows) in own.items()}

    def forward(self, hidden: Float[Tensor, "N width"]) -> Float[Tensor, "N n"]:
        states = hidden[:, : self.width].contiguous()
        logits: Tensor = self.part(states)
        if hidden.shape[1] == self.width:
            return logits
        numbers = hidden[:, self.width :]
        for number, (columns, rows) in self.own.items():
            own = torch.where(numbers == number, rows(states), logits[:, columns])
            logits[:, columns] = own
        return logits
