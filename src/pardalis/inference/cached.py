"""The cached loop: a batch of requests, each id through the model once.

Rows may differ in everything: prompt, modality, limits, seed, guidance. A guided request has a
second row, its unconditional one, which reads ``bos`` and the picture being drawn and nothing else;
both rows ride on the same read of the weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from pardalis.inference.cache import KeyValueCache
from pardalis.inference.request import Request
from pardalis.inference.sampling import guide, sample
from pardalis.model import Decoder
from pardalis.tokens import Grammar, Mode, Rule, State


@dataclass(slots=True)
class _Row:
    """One request while it is being answered."""

    request: Request
    state: State
    ids: list[int]
    rule: Rule
    twin: int = -1  # cache row of its unconditional stream; -1 when it has none
    twin_ids: list[int] = field(default_factory=list)  # what that stream has read


@torch.inference_mode()
def generate_cached(
    model: Decoder, grammar: Grammar, requests: Sequence[Request]
) -> list[list[int]]:
    """Return for each request the ids that follow its prompt, equal to the reference loop's.

    Raises:
        GrammarError: a prompt is malformed.
        RequestError: limits leave no room for what they demand.
    """
    return _Batch(model, grammar, requests).run() if requests else []


class _Batch:
    def __init__(self, model: Decoder, grammar: Grammar, requests: Sequence[Request]) -> None:
        self.model, self.grammar = model, grammar
        self.device = model.embedding.weight.device
        self.allowed_ids = torch.from_numpy(grammar.allowed_ids()).to(self.device)
        self.rows = [self._open(request) for request in requests]
        guided = [row for row in self.rows if row.request.guidance != 1]
        for n, row in enumerate(guided):
            row.twin = len(self.rows) + n
            row.twin_ids = self._twin_prompt(row)
        n_columns = max(len(row.ids) + row.request.limits.room for row in self.rows)
        self.n_cache_rows = len(self.rows) + len(guided)
        self.cache = KeyValueCache(
            model.config, self.n_cache_rows, n_columns, model.embedding.weight
        )

    def _open(self, request: Request) -> _Row:
        state = self.grammar.begin(request.prompt_ids, request.limits)
        return _Row(
            request, state, list(request.prompt_ids), self.grammar.rule(state, request.limits)
        )

    def _twin_prompt(self, row: _Row) -> list[int]:
        vocabulary = self.grammar.vocabulary
        if row.state.mode is not Mode.IMAGE:
            return [vocabulary.bos_id]
        opened = len(row.ids) - 1 - row.ids[::-1].index(vocabulary.begin_image_id)
        return [vocabulary.bos_id, *row.ids[opened:]]

    def run(self) -> list[list[int]]:
        logits = self._prefill()
        while any(row.rule is not Rule.NOTHING for row in self.rows):
            self._choose(logits)
            if any(row.rule is not Rule.NOTHING for row in self.rows):
                logits = self._step()
        return [row.ids[len(row.request.prompt_ids) :] for row in self.rows]

    def _prefill(self) -> Float[Tensor, "B V"]:
        """Read all prompts at once, padded on the right; return each row's last logits."""
        prompts = [row.ids for row in self.rows] + [
            row.twin_ids for row in self.rows if row.twin_ids
        ]
        width = max(map(len, prompts))
        pad_id = self.grammar.vocabulary.pad_id
        padded = [ids + [pad_id] * (width - len(ids)) for ids in prompts]
        columns = torch.arange(width, device=self.device).expand(len(prompts), width)
        hidden = self._hidden(padded, columns)
        last = torch.tensor([len(ids) - 1 for ids in prompts], device=self.device)
        return self.model.head(hidden[torch.arange(len(prompts), device=self.device), last])

    def _step(self) -> Float[Tensor, "B V"]:
        """Read the newest id of every row; finished rows and idle twins read padding in place."""
        pad_id = self.grammar.vocabulary.pad_id
        ids, columns = [[pad_id]] * self.n_cache_rows, [[0]] * self.n_cache_rows
        for i, row in enumerate(self.rows):
            if row.rule is not Rule.NOTHING:
                ids[i], columns[i] = [row.ids[-1]], [len(row.ids) - 1]
            if row.twin_ids:
                ids[row.twin], columns[row.twin] = [row.twin_ids[-1]], [len(row.twin_ids) - 1]
        hidden = self._hidden(ids, torch.tensor(columns, device=self.device))
        return self.model.head(hidden[:, -1])

    def _hidden(self, ids: list[list[int]], columns: Tensor) -> Float[Tensor, "B T D"]:
        mask = self.cache.place(columns)
        return self.model.hidden(
            torch.tensor(ids, device=self.device), columns, mask, self.cache.layers
        )

    def _choose(self, logits: Float[Tensor, "B V"]) -> None:
        """Sample one id for every row that is not finished, and advance its automaton."""
        active = [i for i, row in enumerate(self.rows) if row.rule is not Rule.NOTHING]
        rows = [self.rows[i] for i in active]
        chosen = sample(
            self._guided(logits, active, rows),
            self.allowed_ids[[row.rule for row in rows]],
            [r.request.picture if r.state.mode is Mode.IMAGE else r.request.text for r in rows],
            [row.request.seed for row in rows],
            [len(row.ids) for row in rows],
        )
        for row, token_id in zip(rows, chosen.tolist(), strict=True):
            row.state = self.grammar.advance(row.state, token_id, len(row.ids))
            row.ids.append(token_id)
            row.rule = self.grammar.rule(row.state, row.request.limits)
            if row.twin_ids:
                self._advance_twin(row, token_id)

    def _guided(
        self, logits: Float[Tensor, "B V"], active: list[int], rows: list[_Row]
    ) -> Float[Tensor, "A V"]:
        """Return the logits of the active rows, guided where that is asked."""
        twins = [row.twin if row.rule is Rule.CODE and row.twin_ids else -1 for row in rows]
        if all(twin < 0 for twin in twins):
            return logits[active]
        # A row without guidance here is its own twin with scale 1, which leaves it as it is.
        sources = [i if twin < 0 else twin for i, twin in zip(active, twins, strict=True)]
        scale = [1.0 if t < 0 else r.request.guidance for t, r in zip(twins, rows, strict=True)]
        return guide(logits[active], logits[sources], logits.new_tensor(scale))

    def _advance_twin(self, row: _Row, token_id: int) -> None:
        vocabulary = self.grammar.vocabulary
        if token_id == vocabulary.begin_image_id:
            row.twin_ids = [vocabulary.bos_id, token_id]
        elif token_id in vocabulary.image:
            row.twin_ids.append(token_id)
