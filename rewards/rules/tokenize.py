"""What counts as a word."""

from __future__ import annotations

import re

CJK = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
WORD = re.compile(rf"[{CJK}]|(?:(?![{CJK}_])\w)+(?:['’-](?:(?![{CJK}_])\w)+)*")


def words(text: str) -> list[str]:
    """Words and numbers in order, lower case. Chinese and Japanese are written without spaces: there each character counts as one."""
    return [match.group().lower() for match in WORD.finditer(text)]
