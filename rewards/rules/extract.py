"""Where in a completion the thinking, the answer and the last number stand."""

from __future__ import annotations

import re

NUMBER = re.compile(r"(?:(?<![\w)\].])[-\u2212])?(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|(?<!\d)\.\d+)")
BOX = re.compile(r"\\(?:boxed|fbox)(?:\s*\{|\s+(?P<bare>[^\s${}\\]+))")
BETWEEN_BOXES = re.compile(
    r"(?:[\s$;,]|\\(?:[()\[\],;]|q?quad))*(?:(?:and|or|\\text\s*\{\s*(?:and|or)\s*\})(?:[\s$]|\\(?:[()\[\],;]|q?quad))*)?"
)


def think_text(text: str, prefill: str = "", tag: str = "think") -> str | None:
    """The inside of the first think block; up to the end where it was never closed; None where there is none.

    ``prefill`` is what the template already wrote of the assistant's turn, often the opening tag.
    """
    _, opened, rest = (prefill + text).partition(f"<{tag}>")
    return rest.partition(f"</{tag}>")[0] if opened else None


def answer_text(text: str, tag: str = "answer") -> str | None:
    """The inside of the last complete answer block, stripped, or None: a second thought counts, a second chance does not."""
    end = text.rfind(f"</{tag}>")
    start = text.rfind(f"<{tag}>", 0, max(end, 0))
    return text[start + len(tag) + 2 : end].strip() if start >= 0 else None


def boxed_text(text: str) -> str | None:
    r"""The inside of the last \boxed{...} or \fbox{...} whose braces close within 2,000 characters, or None. Boxes that only "and", "or" or
    a comma parts are one answer in several boxes."""
    found: list[str] = []
    end = len(text)
    for match in reversed(list(BOX.finditer(text))):
        inside = _in_braces(text, match.end() - 1) if text[match.end() - 1] == "{" else match["bare"].rstrip(".,;:")
        if inside is None:
            continue
        closes = match.end() + len(inside) + 1 if text[match.end() - 1] == "{" else match.end()
        if found and not BETWEEN_BOXES.fullmatch(text[closes:end]):
            break
        found.insert(0, inside.strip())
        end = match.start()
    return ", ".join(found) if found else None


def _in_braces(text: str, opening: int) -> str | None:
    depth = 0
    for at in range(opening, min(opening + 2000, len(text))):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return text[opening + 1 : at]
    return None


def last_number(text: str) -> str | None:
    """The last number as it stands (``-1,234.5``), or None. A minus right after a digit, letter or bracket subtracts: 5-3 ends in 3."""
    numbers = NUMBER.findall(text)
    return numbers[-1].replace("\u2212", "-") if numbers else None


def final_text(text: str, prefill: str = "", tag: str = "think") -> str | None:
    """What stands after the first think block, stripped; the whole text where there is none; None where it was never closed."""
    whole = prefill + text
    _, closed, rest = whole.partition(f"</{tag}>")
    if closed:
        return rest.strip()
    return None if f"<{tag}>" in whole else whole.strip()
