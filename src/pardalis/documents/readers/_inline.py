"""Parts of a line that lose their meaning as plain text: powers, formulas and list numbers."""

from selectolax.lexbor import LexborNode

_UP = str.maketrans("0123456789+-−=()", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻⁼⁽⁾")
_DOWN = str.maketrans("0123456789+-−=()", "₀₁₂₃₄₅₆₇₈₉₊₋₋₌₍₎")
_AS_IT_IS = frozenset(("st", "nd", "rd", "th", "™", "®", "℠", "er", "re", "e", "o", "a", "º", "ª"))

_ROMAN = (
    (1000, "m"), (900, "cm"), (500, "d"), (400, "cd"), (100, "c"), (90, "xc"), (50, "l"),
    (40, "xl"), (10, "x"), (9, "ix"), (5, "v"), (4, "iv"), (1, "i"),
)  # fmt: skip


def raised(text: str) -> str:
    """Return text that stands above the line: 2²⁴, x^n, and 1st and notes as they are."""
    return text if text in _AS_IT_IS or text[:1] in "[*†‡" else _shifted(text, "^", _UP)


def lowered(text: str) -> str:
    """Return text that stands below the line: H₂O, x_i."""
    return _shifted(text, "_", _DOWN)


def _shifted(text: str, sign: str, digits: dict[int, int]) -> str:
    if not text:
        return ""
    if all(ord(each) in digits for each in text):
        return text.translate(digits)
    return f"{sign}{text}" if text.isalnum() else f"{sign}({text})"


def list_marker(kind: str, number: int) -> str:
    """Return the number of a list item as its list shows it; ``kind`` is the list's ``type``."""
    if kind in ("a", "A") and number > 0:
        text = ""
        while number:
            number, rest = divmod(number - 1, 26)
            text = chr(ord("a") + rest) + text
        return f"{text.upper() if kind == 'A' else text}."
    if kind in ("i", "I") and 0 < number < 4000:
        text = ""
        for value, letters in _ROMAN:
            text += letters * (number // value)
            number %= value
        return f"{text.upper() if kind == 'I' else text}."
    return f"{number}."


def formula(math: LexborNode) -> str:
    """Return a MathML formula: its own text form (TeX, mostly), or one line of plain text.

    In the latter a fraction is ``a/b``, a power ``a^b``, an index ``a_b``, and a root ``√(a)``.
    """
    if text := (math.attributes.get("alttext") or "").strip():
        return text
    for each in math.css("annotation"):
        if "tex" in (each.attributes.get("encoding") or "").lower():
            return each.text() or ""
    return _linear(math)


def _linear(root: LexborNode) -> str:
    """Return MathML in one line; children come before their parents, on a list of our own."""
    order, stack = [], [root]
    while stack:
        node = stack.pop()
        order.append(node)
        child = node.child
        while child is not None:
            stack.append(child)
            child = child.next
    done: dict[int, str] = {}
    for node in reversed(order):
        if node.is_text_node:
            done[node.mem_id] = " ".join((node.text_content or "").split())
            continue
        parts = []
        child = node.child
        while child is not None:
            if child.is_element_node or done.get(child.mem_id):
                parts.append(done.pop(child.mem_id, ""))
            child = child.next
        done[node.mem_id] = _written(node.tag or "", parts)
    return done[root.mem_id]


def _written(tag: str, parts: list[str]) -> str:
    if tag in ("annotation", "annotation-xml", "mphantom"):
        return ""
    if tag == "mo" and parts and parts[0] in "=<>≤≥≠≈+−±×·→∈":
        return f" {parts[0]} "
    if tag == "mtr":
        return ", ".join(parts)
    if tag == "mtable":
        return "; ".join(parts)
    if tag == "msqrt":
        return f"√({''.join(parts)})"
    match tag, parts:
        case "mfrac", [above, below]:
            return f"{_grouped(above)}/{_grouped(below)}"
        case (("msup" | "mover"), [base, above]):
            return f"{_grouped(base)}^{_grouped(above)}"
        case (("msub" | "munder"), [base, below]):
            return f"{_grouped(base)}_{_grouped(below)}"
        case (("msubsup" | "munderover"), [base, below, above]):
            return f"{_grouped(base)}_{_grouped(below)}^{_grouped(above)}"
        case "mroot", [base, degree]:
            return f"{_grouped(degree)}√({base})"
    return "".join(parts)


def _grouped(text: str) -> str:
    text = text.strip()
    return text if text.isalnum() or len(text) <= 1 else f"({text})"
