"""What is disguised is found as what it is, and goes with its disguise."""

from __future__ import annotations

import base64

import pytest

from node.capture.scrubber import PIIScrubber

scrub = PIIScrubber().scrub
AWS = "AKIA" + "IOSFODNN7EXAMPLE"
TOKEN = "ghp_" + "4aQBfur141EUWytLoEBtSgRQUqnz5xQJkd71"


def wrapped(text: str, layers: int) -> str:
    for _ in range(layers):
        text = base64.b64encode(text.encode()).decode()
    return text


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("to ann\u200b@exam\u00adple.com.", "to [EMAIL]."),
        ("to \uff41nn\uff20example\uff0ecom.", "to [EMAIL]."),
        ("to аnn@exаmple.com.", "to [EMAIL]."),  # both a are Cyrillic
        ("to a\u0301nn@example.com.", "to [EMAIL]."),
        ("GET /i?to=ann%40example.com&x=1", "GET /i?to=[EMAIL]&x=1"),
        ("GET /i?to=ann%2540example.com&x=1", "GET /i?to=[EMAIL]&x=1"),
        ('{"m": "ann\\u0040example.com"}', '{"m": "[EMAIL]"}'),
        ("'ann\\x40example.com'", "'[EMAIL]'"),
        ("ann&#64;example&#x2e;com or ann&commat;example&period;com", "[EMAIL] or [EMAIL]"),
        ("ann [at] example [dot] com", "[EMAIL]"),
        ("ann AT example DOT com", "[EMAIL]"),
        ("a n n @ e x a m p l e . c o m", "[EMAIL]"),
        ("ip ١٠.٠.٠.١ there", "ip [IP] there"),
        ("blocked 203[.]0[.]113[.]7 today", "blocked [IP] today"),
        ("blocked 203(.)0(.)113(.)7 today", "blocked [IP] today"),
        ("from 10 dot 0 dot 0 dot 7 again", "from [IP] again"),
        ("mail ann @ example . com", "mail [EMAIL]"),
        ("open ／home／ann／cv", "open [FILE_PATH]"),
        ("ssn 316\u201375\u20132987", "ssn [SSN]"),
        ("card 4111\u00a01111\u00a01111\u00a01111", "card [CREDIT_CARD]"),
        ("card\n4111\n1111\n1111\n1111\nexp", "card\n[CREDIT_CARD]\nexp"),
        (f'key = "{AWS[:8]}" + "{AWS[8:]}"', 'key = "[AWS_KEY]"'),
        (f"key = ('{AWS[:8]}'\n       '{AWS[8:]}')", "key = ('[AWS_KEY]')"),
        (f'token = ("{TOKEN[:20]}" \\\n  "{TOKEN[20:]}")', 'token = ("[API_KEY]")'),
        ("h=Authorization%3A%20Bearer%20abc123def456", "h=Authorization%3A%20[API_KEY]"),
        ('{"f": "\\/home\\/ann\\/cv.docx"}', '{"f": "[FILE_PATH]"}'),
    ],
)
def test_a_disguise_goes_with_what_it_hides(text: str, clean: str) -> None:
    assert scrub(text) == clean


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_base64_is_opened_to_three_layers(layers: int) -> None:
    assert scrub(f"data: {wrapped(f'token={TOKEN}', layers)}.") == "data: [API_KEY]."


@pytest.mark.parametrize(
    "text",
    [
        "Olá, são 20 % de desconto — “até já”",
        'import (\n\t"reflect"\n\t"testing"\n)',
        "更多資訊：請看這裡。",
        "Kullanıcı adı ve şifre alanları boş bırakılamaz",
        "Η ταχύτητα είναι 3 μm/s, σ = 2",
        "это обычный текст: COVID-19-а, 5G-сети",
        "٢٠٢٦ سنة سعيدة",
        'print("a" + "b", "c" "d")',
        "https://example.com/a%20b?q=%C3%A9",
        "x = a @ b; y = '%d%%' % n",
        f"data:image/png;base64,{base64.b64encode(bytes(range(200))).decode()}",
        wrapped("nothing to see in this plain sentence", 1),
    ],
)
def test_what_is_only_written_otherwise_is_left_alone(text: str) -> None:
    assert scrub(text) == text
