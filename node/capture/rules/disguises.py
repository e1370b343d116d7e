"""The tables of the folded view: which characters are invisible, and which stand for which."""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from typing import Final

# As ranges of an RE2 class.
INVISIBLE: Final = (
    r"\x{AD}\x{61C}\x{115F}\x{1160}\x{17B4}\x{17B5}\x{180B}-\x{180E}\x{200B}-\x{200F}"
    r"\x{202A}-\x{202E}\x{2060}-\x{206F}\x{3164}\x{FE00}-\x{FE0F}\x{FEFF}\x{FFA0}"
    r"\x{E0000}-\x{E0FFF}"
)
MARKS: Final = (
    r"\x{300}-\x{36F}\x{483}-\x{489}\x{1AB0}-\x{1AFF}\x{1DC0}-\x{1DFF}\x{20D0}-\x{20FF}"
    r"\x{FE20}-\x{FE2F}"
)
_RANGE: Final = re.compile(r"\\x\{(\w+)\}(?:-\\x\{(\w+)\})?")

# Letters of the Cyrillic, Greek, Armenian and Cherokee scripts that look like the Latin letter
# before them. They are read as Latin only beside a Latin letter, a digit or an @: see `fold.py`.
_LIKE: Final = """
aаɑα bЬƅ cсϲᴄ dԁժ eеєҽε fғ gɡց hһհ iіιɩӏ jјϳյ kкκᴋ lⅼ mмᴍ nոռ oоοօσᴏ pрρ qԛգ rгᴦ sѕꜱ tτᴛ uυսᴜ vѵνᴠ
wѡԝա xхχ yуγү zᴢ AАΑᎪ BВΒᏴ CСϹᏟ DᎠⅮ EЕΕᎬ FϜ GԌᏀ HНΗᎻ IІΙӀ JЈᎫ KКΚᏦ LᏞ MМΜᎷ NΝ OОΟՕ PРΡᏢ QԚ RᎡ SЅՏᏚ
TТΤᎢ UՍ VѴᏙ WԜᎳ XХΧ YУΥҮ ZΖᏃ
"""
CONFUSABLE: Final = {like: word[0] for word in _LIKE.split() for like in word[1:]}

_PUNCTUATION: Final = "-‐‑‒–—―−﹘﹣⁃ .․。｡ :∶꞉ː /⁄∕ '‘’‛ʼ \"“”„‟ @＠﹫ ,‚ =＝﹦꞊"
# Where characters stand that are another way to write one of ASCII; digits of every script are.
_RANGES: Final = """
A0-A0 2B0-2FE 660-669 6F0-6F9 7C0-7C9 966-96F 9E6-9EF A66-A6F AE6-AEF B66-B6F BE6-BEF C66-C6F
CE6-CEF D66-D6F E50-E59 ED0-ED9 F20-F29 1040-1049 17E0-17E9 1810-1819 1D00-1DBF 2000-200F 202F-202F
205F-205F 2070-209F 2100-214F 2160-217F 2460-24FF 3000-3000 FB00-FB06 FE10-FE6F FF01-FF5E
1D400-1D7FF 1F100-1F169
"""

_ENTITIES: Final = r"""
commat @ period . colon : sol / lowbar _ UnderBar _ hyphen - dash - ndash - minus - equals =
quot " apos ' amp & plus + num # dollar $ percnt % lpar ( rpar ) comma , semi ; bsol \ ast *
excl ! quest ? lt < gt > lsqb [ rsqb ] lbrack [ rbrack ] lcub { rcub } vert |
"""
_PAIRS = iter(_ENTITIES.split())
ENTITIES: Final = {
    **dict(zip(_PAIRS, _PAIRS, strict=True)),
    **dict.fromkeys(("shy", "zwnj", "zwj", "ZeroWidthSpace", "NoBreak"), ""),
    "nbsp": " ",
    "Tab": "\t",
    "NewLine": "\n",
}


@cache
def compatible() -> dict[str, str]:
    """Characters that are another way to write one of ASCII, with it: ７, 𝟕 and ⑦ are 7."""
    table = {form: word[0] for word in _PUNCTUATION.split() for form in word[1:]}
    for first, _, last in (span.partition("-") for span in _RANGES.split()):
        for code in range(int(first, 16), int(last, 16) + 1):
            character = chr(code)
            plain = unicodedata.normalize("NFKC", character)
            digit = unicodedata.decimal(character, None)
            if digit is not None:
                plain = str(digit)
            if len(plain) == 1 and plain.isascii() and plain.isprintable():
                table.setdefault(character, plain)
    return table


@cache
def compatible_bytes() -> dict[bytes, bytes]:
    """The same table in UTF-8, with the characters that stand for nothing."""
    table = {form.encode(): plain.encode() for form, plain in compatible().items()}
    for ranges in (INVISIBLE, MARKS):
        for first, last in _RANGE.findall(ranges):
            for code in range(int(first, 16), int(last or first, 16) + 1):
                table[chr(code).encode()] = b""
    return table
