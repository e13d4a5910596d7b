"""Token ids: the joint vocabulary, the grammar of sequences, the text tokenizer. No torch."""

from pardalis.tokens.chat_template import ChatTemplate, Turn
from pardalis.tokens.control import (
    ControlTokenizer,
    control_tokens,
    template_variables,
    unmarked_turn_marks,
    with_template_end,
)
from pardalis.tokens.encoded import Encoded, Ids
from pardalis.tokens.grammar import Grammar, Limits, Phase, Rule, Span, SpanKind, State
from pardalis.tokens.infilling import Rotated, TokenSpan, open_gap, restore, rotate
from pardalis.tokens.render import render
from pardalis.tokens.text import TextStream, TextTokenizer, train_text_tokenizer
from pardalis.tokens.vocabulary import END_MASK, Vocabulary, mask_names
