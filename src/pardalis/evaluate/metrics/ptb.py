"""Words of captions, as the COCO caption evaluation counts them.

It splits captions by Stanford's PTBTokenizer 3.4.1 in lower case, which follows the conventions of
the Penn Treebank, and leaves out punctuation. This is the same for ordinary captions without Java;
brackets remain as ``-lrb-`` and ``-rrb-``, since the evaluation looks for them in upper case.
"""

import re

# What the COCO caption evaluation leaves out. Repeated signs (``!!!``) and others stay.
_LEFT_OUT = frozenset(['"', "''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

_SIGNS = {
    "“": '"', "”": '"', "‘": "`", "’": "'", "–": " -- ", "—": " -- ", "…": "...", "£": "#",
    "€": "$", "¢": " cents", "¼": " 1/4", "½": " 1/2", "¾": " 3/4", "⅓": " 1/3", "⅔": " 2/3",
}  # fmt: skip
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}

# Words that are written as one and counted as two.
_TWO = {
    "cannot": "can not", "gonna": "gon na", "wanna": "wan na", "gotta": "got ta",
    "gimme": "gim me", "lemme": "lem me", "'tis": "'t is", "'twas": "'t was",
}  # fmt: skip

# They keep their period.
_ABBREVIATIONS = (
    r"mr|mrs|ms|dr|prof|st|ave|rd|blvd|mt|ft|jan|feb|mon|tue|vs|etc|jr|sr|inc|ltd|corp|co|bros|gen|"
    r"lt|sgt|capt|rev|hon|gov|sen|rep|cf|dept|est|sq|tel|ext|ph\.d"
)

_LETTER = r"[^\W\d_]"
_ALNUM = r"[^\W_]"
_CLITIC = r"'(?:s|m|d|ll|re|ve)\b"  # 's of man's
_TOKEN = re.compile(
    rf"""
    https?://[^\s"<>()]*[^\s"<>().,;:!?']
    | [\w.-]+@[\w-]+(?:\.[\w-]+)+
    | </?{_LETTER}[^<>\s]*>
    | (?-i:[A-Z]+(?:&[A-Z]+)+)                           # AT&T
    | (?:US|C)\$
    | {_LETTER}(?:\.{_LETTER})+\b\.? | {_LETTER}\.(?!\w)  # u.s., p.m., plan b.
    | (?:{_ABBREVIATIONS})\.
    | no\.(?=\s\d)
    | '\d0s\b | 'n' | '(?:tis|twas|em|cause|n)\b | y'(?=all\b) | ma'am
    | {_LETTER}+(?=n't\b) | n't\b                        # do n't
    | {_LETTER}{{1,2}}(?!{_CLITIC})'{_LETTER}+                      # o'clock
    | {_CLITIC}
    | \d+:\d+(?=[ap]m\b)                                 # 3:00 pm
    | (?<!\w)[-+]?(?:\d+(?:[.,:/]\d+)*|\.\d+)(?:{_ALNUM}+)?(?:[-/]{_ALNUM}+)*
    | [#@]{_LETTER}\w* | c(?:\+\+|\#)
    | {_ALNUM}+(?:[-._/]{_ALNUM}+)*
    | [:;=]-?[()]
    | \.\.\. | [!?]+ | -- | `` | ''
    | \S
    """,
    re.VERBOSE | re.IGNORECASE,
)


def caption_words(text: str) -> list[str]:
    """Return the words of a caption in lower case, without punctuation.

    >>> caption_words("A man's dog (black-and-white) doesn't bark.")
    ['a', 'man', "'s", 'dog', '-lrb-', 'black-and-white', '-rrb-', 'does', "n't", 'bark']
    """
    plain = "".join(_SIGNS.get(sign, sign) for sign in text if ord(sign) < 0x10000)
    tokens = ("".join(_BRACKETS.get(sign, sign) for sign in each) for each in _TOKEN.findall(plain))
    words = (word for token in tokens for word in _TWO.get(token.lower(), token.lower()).split())
    return [word for word in words if word not in _LEFT_OUT]
