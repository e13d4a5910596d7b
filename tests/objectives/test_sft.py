"""SFT: loss and gradients are those of the formula, written out for each conversation alone."""

import math

import pytest
import torch
from chat import codec_of
from shapes import decoder_config

from pardalis.codec import Codec
from pardalis.data.loader import to_batch
from pardalis.documents import Document, Text, learning_only
from pardalis.errors import ConfigError
from pardalis.model import Decoder, initialise
from pardalis.objectives import OBJECTIVES, NextTokenConfig, SFTConfig, learnt_roles

S, U, A = "system", "user", "assistant"
CONVERSATIONS = [
    [(U, "What?"), (A, "An owl.")],
    [(S, "Brief."), (U, "Who?"), (A, "The owl, the cat and the fox."), (U, "Oh?"), (A, "A")],
    [(U, "The oak"), (A, "old"), (U, "unanswered")],
]
ROW = 160


@pytest.fixture(scope="module", params=["without a template", "ChatML"])
def own_codec(request, codec: Codec) -> Codec:
    if request.param == "ChatML":
        return codec_of("ChatML", codec.image_tokenizer)
    return codec


@pytest.fixture(scope="module")
def model(own_codec: Codec) -> Decoder:
    config = decoder_config(
        vocab_size=own_codec.vocabulary.size, context=ROW, d_model=16, n_layers=2, n_heads=2,
        n_kv_heads=2, d_ff=32, init_std=0.3,
    )  # fmt: skip
    return initialise(Decoder(config), seed=0).eval()


def document(turns) -> Document:
    return Document(tuple(Text(text, role) for role, text in turns))


def batch_of(codec: Codec, rows):
    encoded = [
        [codec.encode(learning_only(document(CONVERSATIONS[n]))) for n in row] for row in rows
    ]
    return to_batch(encoded, ROW, codec.vocabulary.pad_id)


def learnt_positions(codec: Codec, turns) -> list[int]:
    """Return where the assistant's tokens and the ends of its turns stand, found from the ids.

    Nothing of the library's weights is read: without a template turns are cut at ``end_turn``, with
    ChatML at its two control tokens.
    """
    ids = codec.encode(document(turns)).ids.tolist()
    found, role, start = [], None, 0
    names = {i: name for name, i in codec._control.items()}
    for n, i in enumerate(ids):
        if codec.chat_template is not None:
            if names.get(i) == "<|im_start|>":
                header = codec.render(ids[n + 1 : n + 20]).partition("\n")[0]
                role = header
                length = len(codec.text_tokenizer.encode(header + "\n"))
                start = n + 1 + length
            if role == A and n >= start:
                found.append(n)
            if names.get(i) == "<|im_end|>":
                role = None
        else:
            vocabulary = codec.vocabulary
            if n == 0:
                role = S if turns[0][0] == S else U
                continue
            if role == A:
                found.append(n)
            if i == vocabulary.end_turn_id:
                if ids[n - 1] == vocabulary.end_turn_id:
                    continue  # the mark of the system's turn
                role = {S: U, U: A, A: U}[role]
    return found


def naive(model, codec, numbers, average, z_loss):
    """Sum over the conversations, each in a forward pass of its own, and the count."""
    total, count = torch.zeros(()), 0.0
    for number in numbers:
        turns = CONVERSATIONS[number]
        ids = torch.tensor(codec.encode(document(turns)).ids)
        logits = model.head(model.hidden(ids[None]))[0]
        losses = []
        for position in learnt_positions(codec, turns):
            log_z = torch.logsumexp(logits[position - 1], dim=-1)
            nll = log_z - logits[position - 1, ids[position]]
            losses.append(nll + z_loss * log_z**2)
        assert losses
        if average == "token":
            total, count = total + sum(losses), count + len(losses)
        else:
            total, count = total + sum(losses) / len(losses), count + 1
    return total, count


@pytest.mark.parametrize("average", ["token", "conversation"])
def test_loss_and_gradients_of_packed_rows_are_those_of_the_formula(model, own_codec, average):
    rows = [[0, 1], [2, 0]]
    objective = SFTConfig(average=average, z_loss=0.01).build({"image": own_codec.vocabulary.image})
    batch = batch_of(own_codec, rows)
    loss = objective(model, batch)
    total, count = naive(model, own_codec, [n for row in rows for n in row], average, 0.01)
    torch.testing.assert_close(loss.total, total, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(loss.count, torch.tensor(float(count)), rtol=1e-6, atol=0)
    torch.testing.assert_close(objective.count(batch), loss.count)
    parameters = list(model.parameters())
    found = torch.autograd.grad(loss.total, parameters)
    expected = torch.autograd.grad(total, parameters)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_attention_stays_within_a_conversation(model, own_codec):
    """What precedes a conversation in its row changes nothing of its loss."""
    objective = SFTConfig().build({"image": own_codec.vocabulary.image})
    alone = objective(model, batch_of(own_codec, [[0], [1]]))
    packed = objective(model, batch_of(own_codec, [[0, 1]]))
    torch.testing.assert_close(packed.total, alone.total, rtol=1e-5, atol=1e-5)
    across = SFTConfig(document_mask=False).build({"image": own_codec.vocabulary.image})
    seen = across(model, batch_of(own_codec, [[0, 1]]))
    assert abs(float((seen.total - alone.total).detach())) > 1e-3


def test_micro_batches_add_up(model, own_codec):
    objective = SFTConfig(average="conversation").build({"image": own_codec.vocabulary.image})
    whole = batch_of(own_codec, [[0, 1], [2]])
    parts = [objective(model, whole.rows(slice(n, n + 1))) for n in range(2)]
    both, loss = parts[0] + parts[1], objective(model, whole)
    torch.testing.assert_close(both.total, loss.total, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(both.count, loss.count)
    assert math.isclose(loss.count.item(), 3, rel_tol=1e-6)


def test_a_row_without_answers_and_padding_give_zero(model, own_codec):
    batch = batch_of(own_codec, [[0]])
    batch.weights[:] = 0
    loss = SFTConfig(average="conversation").build({"image": own_codec.vocabulary.image})(
        model, batch
    )
    assert loss.total.item() == loss.count.item() == 0
    gradients = torch.autograd.grad(loss.total, list(model.parameters()), allow_unused=True)
    assert all(each is None or not each.any() for each in gradients)


def test_by_token_it_is_next_token_prediction_of_the_same_rows(model, own_codec):
    batch, modalities = batch_of(own_codec, [[1, 2]]), {"image": own_codec.vocabulary.image}
    options = {"modality_weights": {"text": 0.5}, "z_loss": 0.1}
    ours = SFTConfig(**options).build(modalities)(model, batch)
    plain = NextTokenConfig(**options).build(modalities)(model, batch)
    assert ours.total == plain.total and ours.sums == plain.sums


def test_the_weights_of_modalities_are_checked(own_codec):
    with pytest.raises(ConfigError, match=r"modality_weights\.sound is of no modality"):
        SFTConfig(modality_weights={"sound": 1.0}).build({"image": own_codec.vocabulary.image})


def test_which_roles_are_learnt():
    assert OBJECTIVES["sft"] is SFTConfig
    assert learnt_roles(SFTConfig()) == (A,)
    assert learnt_roles(NextTokenConfig()) == ()
