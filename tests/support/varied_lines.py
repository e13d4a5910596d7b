"""Lines of text that tell tokenizers apart: languages, code, emoji, spaces, numbers."""

import random

_WORDS = {
    "English": "the owl can't fly over 3 old oaks, they'll say; isn't it? I'M SURE",
    "German": "Größe und Übermut, naïve Füße auf der Straße „dort“",
    "French": "l'été où l'œuf coûte 5 € n'est-ce pas",
    "Spanish": "¿qué pasó ayer en la montaña? ¡niño!",
    "Turkish": "İstanbul'da ağaçlar ıslak, çığ düştü",
    "Polish": "zażółć gęślą jaźń 12 źdźbeł",
    "Russian": "сова летит над старым дубом в 2024 году",
    "Greek": "η κουκουβάγια και η βελανιδιά, όχι",
    "Chinese": "猫头鹰坐在老橡树上，价格是３５元。",
    "Japanese": "フクロウが古い樫の木にとまっています。１２３",
    "Korean": "부엉이가 오래된 참나무에 앉았다",
    "Arabic": "البومة على شجرة البلوط القديمة ١٢٣",
    "Hebrew": "הינשוף על עץ האלון",
    "Hindi": "उल्लू पुराने ओक पर बैठा है १२३",
    "Thai": "นกฮูกเกาะอยู่บนต้นโอ๊ก",
    "Vietnamese": "con cú đậu trên cây sồi già ở đây",
    "decomposed": "cafe\u0301 A\u030angstro\u0308m n\u0303",
    "emoji": "🦉 👩‍👩‍👧‍👦 👍🏽 🇫🇷 ❤️ 🏳️‍🌈 ☃ 🦎",
    "mathematics": "∑ x² ≤ ½ ⇒ √2≈1.41421356 ∀ε>0 ²³¹ Ⅻ ①",
    "code": 'def f(x): return x**2  # ok\tif(a&&b){c+=1;} <div class="a-b">&nbsp;</div> a->b::c',
    "numbers": "1 22 333 4444 1,234,567.89 0x1F 1e-5 2024-11-29 12:30 50% $9.99 ½ Ⅳ",
    "names": "<|im_start|> <s> </s> <0x41> [INST] <|endoftext|> <unk> ▁ Ġ",
    "odd": "\u200b \ufeff \u00ad \u2028 \u0085 \x00 \x7f \ufffd zero\u200bwidth",
}
_BETWEEN = ["", " ", " ", " ", "  ", "   ", "     ", "\t", "\n", "\n\n", "\r\n", " \n", "\n ",
            "\t\t", "\u00a0", "\u3000", "!", "...", ", ", "--", "'s ", "'LL ", "_"]  # fmt: skip


def varied_lines(n: int = 2000, seed: int = 0) -> list[str]:
    """Return n lines, each of up to twelve pieces of some of the texts above, chosen by a seed."""
    generator = random.Random(seed)
    lines = list(_WORDS.values())
    kinds = [text.split(" ") for text in _WORDS.values()]
    while len(lines) < n:
        mixed = generator.sample(kinds, generator.choice((1, 1, 1, 2, 3)))
        pieces = [
            generator.choice(generator.choice(mixed)) + generator.choice(_BETWEEN)
            for _ in range(generator.randint(1, 12))
        ]
        lines.append(generator.choice(("", "", " ", "  ", "\n")) + "".join(pieces))
    return lines[:n]
