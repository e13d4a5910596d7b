"""The automaton in tensors equals the grammar, rule by rule and state by state."""

import random

import pytest
import torch

from pardalis.inference.automaton import NO_LIMIT, STATE_FIELDS, Automaton, SlotLimits, SlotState
from pardalis.tokens import Grammar, Limits, Phase, Rule, State, Vocabulary

IDS = Vocabulary.build(n_codes=12, n_text=20)
A = IDS.text.start
LIMITS = [
    Limits(max_new_tokens=40),
    Limits(max_new_tokens=40, max_images=0),
    Limits(max_new_tokens=40, max_images=2),
    Limits(max_new_tokens=40, text=False, max_images=3),
    Limits(max_new_tokens=9),
    Limits(max_new_tokens=1),
    Limits(max_new_tokens=40, one_turn=True),
    Limits(max_new_tokens=40, one_gap=True),
    Limits(max_new_tokens=40, max_images=0, one_gap=True),
]
PROMPTS = [[IDS.bos_id], [IDS.bos_id, A], [IDS.bos_id, A, IDS.begin_image_id, 9, 10]]


def slot_state(states: list[State], last: list[int], positions: list[int]) -> SlotState:
    def column(name: str) -> torch.Tensor:
        return torch.tensor([int(getattr(state, name)) for state in states])

    counted = {name: column(name) for name in STATE_FIELDS if name not in ("last", "position")}
    return SlotState(**counted, last=torch.tensor(last), position=torch.tensor(positions))


def limits_of(limits: list[Limits], branched_image: list[int] | None = None) -> SlotLimits:
    most = [NO_LIMIT if x.max_images is None else x.max_images for x in limits]
    return SlotLimits(
        text=torch.tensor([int(x.text) for x in limits]),
        max_images=torch.tensor(most),
        one_turn=torch.tensor([int(x.one_turn) for x in limits]),
        one_gap=torch.tensor([int(x.one_gap) for x in limits]),
        guided=torch.tensor([int(branched_image is not None)] * len(limits)),
        branched_image=torch.tensor(branched_image or [-1] * len(limits)),
    )


@pytest.mark.parametrize("writable", [(), ("sep", "mask"), ("end_mask",)])
def test_equals_the_grammar(writable):
    """Every sequence takes random tokens that its rule allows, until all are over."""
    grammar = Grammar(
        IDS.extended(["mask", "sep", "read", "end_mask"], writable=writable), codes_per_image=4
    )
    automaton = Automaton(grammar, torch.device("cpu"))
    written = grammar.writable_ids()
    draw = random.Random(0)
    limits = [x for x in LIMITS for _ in PROMPTS * 20 if x.max_new_tokens > 10] + LIMITS
    prompts = [p for x in LIMITS for p in PROMPTS * 20 if x.max_new_tokens > 10]
    prompts += [PROMPTS[0]] * len(LIMITS)
    states = [grammar.begin(prompt, x) for prompt, x in zip(prompts, limits, strict=True)]
    ids = [list(prompt) for prompt in prompts]
    on_device = slot_state(states, [i[-1] for i in ids], [len(i) - 1 for i in ids])
    seen = set()
    for _ in range(50):
        expected = [grammar.rule(s, x) for s, x in zip(states, limits, strict=True)]
        rule = automaton.rule(on_device, limits_of(limits))
        assert rule.tolist() == [int(r) for r in expected]
        seen |= set(expected)
        chosen = [draw.choice(written[allowed.start : allowed.stop] or [IDS.pad_id])
                  for allowed in (grammar.ranges()[r] for r in expected)]  # fmt: skip
        on_device = automaton.advance(on_device, rule, torch.tensor(chosen))
        for n, token_id in enumerate(chosen):
            if expected[n] is not Rule.NOTHING:
                states[n] = grammar.advance(states[n], token_id)
                ids[n].append(token_id)
        from_host = slot_state(states, [i[-1] for i in ids], [len(i) - 1 for i in ids])
        for name in STATE_FIELDS:
            assert torch.equal(getattr(on_device, name), getattr(from_host, name)), name
    assert seen == set(Rule) - {Rule.BOS}
    assert all(rule is Rule.NOTHING for rule in expected)


def test_a_guided_image_waits_for_its_branches(grammar):
    automaton = Automaton(grammar, torch.device("cpu"))
    inside = State(Phase.IMAGE, codes_left=3, images=2, budget=20)
    state = slot_state([inside, inside], [9, 9], [5, 5])
    rule = automaton.rule(state, limits_of([Limits(max_new_tokens=30)] * 2, branched_image=[1, 2]))
    assert rule.tolist() == [Rule.NOTHING, Rule.CODE]
    after = automaton.advance(state, rule, torch.tensor([10, 11]))
    assert after.last.tolist() == [9, 11]
    assert after.position.tolist() == [5, 6]
    assert after.codes_left.tolist() == [3, 2]


def test_starts_with_bos(grammar):
    automaton = Automaton(grammar, torch.device("cpu"))
    state = slot_state([State(budget=5)], [IDS.pad_id], [-1])
    rule = automaton.rule(state, limits_of([Limits(max_new_tokens=5)]))
    assert rule.tolist() == [Rule.BOS]
    assert automaton.advance(state, rule, torch.tensor([IDS.bos_id])).phase.tolist() == [Phase.TEXT]
