"""Values whose name says that they open something: `password = …`, `--token …`, `<secret>…`.

Three strengths of name ask for three strengths of value: after `password` nearly anything but a
word of prose or a piece of code, after `api_key` what looks drawn, after `key` a long one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from . import drawn
from .scan import ALNUM, WORD, Found, Label, Scan, Span, any_of, compiled

VALUE_BYTES_MAX = 8192
_JUDGED_BYTES = 200  # of a value, enough to tell what it is

_PASSWORD = (
    r"passw(?:or)?d\w{0,2}|passphrase|passcode|passwort|kennwort|pwd|\bpass\b|[_-]pass"
    r"|pswd|psw|contrase(?:\xc3\xb1|n)a|\bclave|\bsenha|mot[ _]de[ _]passe"
    r"|\bmdp\b|wachtwoord|l(?:\xc3\xb6|o)senord|has(?:\xc5\x82|l)o\b|parola|adgangskode"
    r"|salasana|heslo|\bpin(?:[ _-]?code)?\b|requirepass|identified by"
    r"|\xd0\xbf\xd0\xb0\xd1\x80\xd0\xbe\xd0\xbb\xd1\x8c|\xe5\xaf\x86\xe7\xa0\x81"
    r"|\xe5\xaf\x86\xe7\xa2\xbc"
    r"|\xe3\x83\x91\xe3\x82\xb9\xe3\x83\xaf\xe3\x83\xbc\xe3\x83\x89"
    r"|\xeb\xb9\x84\xeb\xb0\x80\xeb\xb2\x88\xed\x98\xb8"
)
_SECRET = (
    r"secret|token|api[ _.-]?key|apikey|access[ _.-]?key|auth[ _.-]?key|private[ _.-]?key"
    r"|signing[ _.-]?key|encrypt\w{0,3}[ _.-]?key|account[ _.-]?key"
    r"|master[ _.-]?key|shared[ _.-]?(?:access[ _.-]?)?key|storage[ _.-]?key"
    r"|service[ _.-]?key|deploy[ _.-]?key|subscription[ _.-]?key|server[ _.-]?key"
    r"|session[ _.-]?key|app(?:lication)?[ _.-]?key|consumer[ _.-]?key|webhook\w{0,8}"
    r"|credentials?|client[ _.-]?id|licen[cs]e[ _.-]?key|authorization|[_.-]auth\b"
    r"|\bauth\b|mnemonic|seed[ _.-]?phrase|recovery[ _.-]?(?:key|code|phrase)"
    r"|connection[ _.-]?string|\bdsn\b|\bpat\b|\bjwt\b|\bbearer\b|\bhmac|\bcreds?"
    r"|otp[ _.-]?secret|totp"
)
_SUFFIX = r"[A-Za-z0-9_.-]*"  # unbounded, for counting would make the automaton large
_CLOSE = r"\\{0,3}[\"'`]?[\])]{0,2}"
_OPEN = r"(?:[rbfuRBFU$@]{0,2}\\{0,3}[\"'`])?"
_SIGN = (
    r"(?:\(\s{0,2}[\"'`]|\s(?:for|to|of|on)\s[A-Za-z0-9 '_-]*\sis\s|\s{0,8}(?:=>|:="
    r"|\?\?=?|\|\|=?|===?|->|<-|[:=])\s{0,4}|\s?:\s?[A-Za-z_][\w."
    r"|\[\]]{0,20}\s?=\s?"
    r"|[\"']\s{0,2},\s{0,3}[\"']?(?:value|content|default)?[\"']?\s?[:=]?\s{0,3}"
    r"|\s{1,3}(?:value|content|default)\s?=\s?|>(?:<!\[CDATA\[)?\s{0,4}"
    r"|\s{1,3}(?:is|was|are|set to|ist|lautet|es|est|\xc3\xa9|\xc3\xa8|:=)[ :]{1,2}"
    r"|\s{0,2}\n\s{0,16}-?\s?value:\s?|%3[ADad](?:%20)?|\xef\xbc\x9a\s?"
    r"|\xe6\x98\xaf\s?|\xe3\x81\xaf\s?)"
)

# The stems of all these names: a small automaton for the scan, the whole names for the judgement.
_STEM_PASSWORD = (
    r"pass|pwd|psw|kennwort|contrase(?:\xc3\xb1|n)a|clave|senha|mdp|wachtwoord|senord"
    r"|has(?:\xc5\x82|l)o"
    r"|parola|adgangskode|salasana|heslo|\bpin|identified by"
    r"|\xd0\xbf\xd0\xb0\xd1\x80\xd0\xbe\xd0\xbb\xd1\x8c"
    r"|\xe5\xaf\x86\xe7(?:\xa0\x81|\xa2\xbc)|\xe3\x82\xb9\xe3\x83\xaf\xe3\x83\xbc\xe3\x83\x89"
    r"|\xeb\xb9\x84\xeb\xb0\x80\xeb\xb2\x88\xed\x98\xb8"
)
_STEM_SECRET = (
    r"secret|token|key|auth|cred|client.?id|webhook|mnemonic|phrase|recovery"
    r"|connection.?string|dsn|\bpat\b|jwt|bearer|hmac|otp|sid\b|ap[pi]+.?id|seed|salt"
    r"|cookie|sess|\bsig|csrf|xsrf|refresh|_id\b"
)
_VALUE = compiled(
    # `<add key="ApiSecret" value="…"/>`: before the others, whose value would be the name
    rf"(?i)(?:key|name)=[\"'][\w.-]*(?:pass|secret|token|key"
    rf"|cred)[\w.-]*[\"']\s+value=[\"']([^\s\"'<>]{{4}})"
    rf"|(?:{_STEM_PASSWORD}){_SUFFIX}{_CLOSE}{_SIGN}{_OPEN}([^\s\"'`,;<>()\[\]|]{{4}})"
    rf"|(?:{_STEM_SECRET}){_SUFFIX}{_CLOSE}{_SIGN}{_OPEN}(?:bearer |basic |token )?"
    r"([^\s\"'`,;<>(){}\[\]|]{8})"
)
_PASSWORD_NAME = compiled(rf"(?i){_PASSWORD}")
_SECRET_NAME = compiled(rf"(?i){_SECRET}")
_NAME = WORD | frozenset(b".- ")
_OPTION = compiled(
    r"(?i)(?:-[a-z-]*(?:pass|pwd|secret|token|api-?key|access-?key|auth|creds|credential)"
    r"[a-z-]*[ =]{1,2}[\"']?"
    r"|(?:password|passwd|identified by|requirepass|passphrase)\s{1,2}[\"']"
    r"|login \S+\s{1,4}password\s{1,2}"
    r"|\b(?:set|setx|setenv|config)\s{1,2}[\w.:/-]*(?:pass|pwd|secret|token|api_?key|access_?key)"
    r"[\w.-]*\s{1,2}[\"']?)([^\s\"'`]{4,})"
)
_CHOICE = re.compile(rb"[A-Za-z_]+(?:\|[A-Za-z_]+)+")  # of a manual: `password|hash`
_CURL_USER = compiled(
    r"(?:curl|wget|http|docker login)\b[^\n]*?\s(?:-u|--user|-U|--proxy-user|--auth|-a)[ =]?[\"']?"
    r"[^\s:\"']{1,64}:([^\s\"'`]{4,})"
)
_MYSQL = compiled(
    r"\b(?:login|mysql|mysqldump|mysqladmin|mariadb|sshpass|redis-cli|mongo(?:sh)?|7z"
    r"|psql|ldapsearch)\b"
    r"[^\n]*?\s(?:-p|-a|-w) ?[\"']?([^\s\"'`-][^\s\"'`]{3,})"
)
_COOKIE = compiled(r"(?i)(?:set-)?cookie\d?[\"']?\s{0,2}[:=]\s{0,2}[\"']?([^\n\"']{8,})")
_PAIR = re.compile(rb"([\w.%-]{1,64})=([^;\s,\"']{12,})")
_PGPASS = compiled(r"(?:^|\n)[\w.*-]{1,80}:(?:\d{2,5}|\*):[\w*-]{1,40}:[\w*-]{1,40}:([^\s:]{4,})")
_MARK = compiled(r"(?i)cookie\d?[\"']?\s{0,2}[:=]|:(?:\d{4,5}|\*):[\w*-]+:[\w*-]+:")
SHAPES: Final = (_MARK, _CURL_USER, _MYSQL)
_SESSION = re.compile(rb"(?i)sess|sid|auth|tok")
_LISTED = compiled(r"(?i)(?:pass|pwd|secret|token|key|cred)\w*[\"'`]?\s*[:=]\s*\[\s*[\"'`]")
_ANY = any_of(_VALUE, _OPTION, _LISTED)
_ITEMS = re.compile(rb"[\"'`]([^\"'`\n]{6,512})[\"'`]")

_BARE = re.compile(rb"[^\s\"'`,;<>(){}\[\]|]+")
_CODE = re.compile(
    rb"^(?:[A-Za-z_$][\w$]*(?:\.[A-Za-z_$][\w$]*)+|[a-z]+(?:[_-][a-z]+)+|[A-Z]+(?:_[A-Z]+)+"
    rb"|[a-z]+(?:[A-Z][a-z]+)+|[A-Z][a-z]+(?:[A-Z][a-z]+)*|[a-z]+|[A-Z]+)\d?$"
)
_TYPE = re.compile(
    rb"(?i)^(?:str(?:ing)?|bytes?|int\d*|uint\d*|float\d*|bool(?:ean)?|optional|list|dict|any"
    rb"|object|char|varchar|text|number|sha\d+|md5|hmac\w*|argon2\w*|bcrypt|scrypt"
    rb"|pbkdf2\w*|hs\d+|rs\d+|es\d+|oauth2?|basic|bearer|base64|utf-?8|aes-?\d*\S*"
    rb"|rsa-?\d*|ed25519|x509|http\S*|ssh-\w+|grpc|jwt|v\d)$"
)
_AWS_NAME = compiled(r"(?i)aws|secret_?access|amz|session_?token")
_PROSE_SIGN = compiled(r"(?i)\s(?:is|was|are|set to|ist|lautet|es|est|\xc3\xa9|\xc3\xa8)[ :]{1,2}$")
_ORDINARY = re.compile(rb"(?i)pass|pwd|input|param|arg|field|value|str|text|key|word")
_EXPRESSION = re.compile(rb"[.*&=]|->|::|\?$|!$")
_PHRASE = re.compile(rb"(?i)mnemonic|phrase|seed")
_DELIMITED = re.compile(rb"[./:]")
_CODE_OPENINGS = (b"/", b"./", b"~/", b"@", b"&", b"-", b"0x0")
_FILE_OR_DATE = re.compile(rb"[\w/-]+\.[a-z]{1,4}$|\d{4}-\d\d-\d\d")
_ABOUT = compiled(
    r"(?i)(?:hash|salt|_file|_path|_url|_field|policy|_len|length|min|max|type|input|label"
    r"|name|reset|strength|manager|prompt|required)[\w.-]*[\"']?\s{0,3}[:=]"
)
_NOT_SECRET = compiled(
    r"(?i)(?:public[_ -]?key|key[_-]?(?:id|name|type|size|len(?:gth)?|file|path|code|word"
    r"|board|map)|keyword|token(?:ize|izer|s_|_count|_type|_name|_id|_len|_limit|_budget"
    r"|_usage)|tokens\b|max_token|_name\b|_path\b|_file\b|_url\b|_uri\b|_type\b"
    r"|_len(?:gth)?\b|_size\b|_count\b|_hash\b|_expir\w*|_age\b|_ttl\b|_policy\b"
    r"|_field\b|primary[_ ]key|foreign[_ ]key|sort_?key|cache[_-]?key|keys?\("
    r"|author|authored|authority|monkey|credentialsid|donkey|hotkey"
    r"|turkey|keyid|fingerprint|ssh-key)"
)


def find(scan: Scan) -> Iterator[Span]:
    """Yield the values, without their names."""
    if not scan.has(_ANY):
        return
    done = 0
    for match in scan.matches(_VALUE):
        if match.end() > done and (span := _value(scan, match)):
            done = span.end
            yield span
    for match in scan.matches(_OPTION):
        yield from _option(match)
    yield from _lists(scan)


def _value(scan: Scan, match: Found) -> Span | None:
    text = scan.text
    begun, start = match.start(), match.end() - (8 if match.group(3) else 4)
    quote = text[start - 1 : start]
    quoted = quote in (b'"', b"'", b"`")
    end = _end(text, start, quote if quoted else b"", start + _JUDGED_BYTES)
    head = text[scan.back(max(begun, start - 96), _NAME, 24) : start]
    value = text[start:end]
    if len(value) < 4 or text[end : end + 1] == b"(" or drawn.stands_in(value):
        return None
    if b"://" in value:
        return None  # a URL, which has rules of its own
    if value.count(b"=") > 2 and value.count(b"=") * 10 > len(value):
        return None  # a chain of names: each is met by itself
    if _PASSWORD_NAME.search(head):
        secret = _opens_a_door(value, head, quoted)
    elif _SECRET_NAME.search(head):
        secret = _is_secret(value, head, quoted)
    else:
        secret = _is_long_secret(value, head)
    aws = _AWS_NAME.search(head) is not None and end - start >= 40 and b"$" not in value
    if secret or (aws and end - start == 40 and drawn.mixed(value)):
        end = _end(text, start, quote if quoted else b"", start + VALUE_BYTES_MAX)
        label = Label.AWS_KEY if aws else Label.API_KEY
        return Span(start, end, label, "value of a telling name")
    return None


def _end(text: bytes, start: int, quote: bytes, limit: int) -> int:
    """The end of the value: its closing quote, or the first byte that no bare value has."""
    if quote:
        line = text.find(b"\n", start, limit)
        close = text.find(quote, start, limit if line < 0 else line)
        if close > start:
            while text[close - 1 : close] == b"\\":
                close -= 1
            if close > start:
                return close
    found = _BARE.match(text, start, limit)
    end = found.end() if found else start
    while end > start and text[end - 1] in b".:\\":
        end -= 1
    return end


def _opens_a_door(value: bytes, head: bytes, quoted: bool) -> bool:
    """A password: not a word of prose, not a type, not a piece of code."""
    digit, special, mixed = _has_digit(value), _special(value), drawn.mixed(value)
    if b" " in value and not _PHRASE.search(head):
        return quoted and digit and special and len(value) < 40
    if _TYPE.match(value):
        return False
    if _ABOUT.search(head[8:]) and not (digit and mixed):
        return False
    if value.startswith((*_CODE_OPENINGS, b"\\", b"#{")) and not (quoted and digit and mixed):
        return False
    prose = _PROSE_SIGN.search(head) is not None
    if value.isdigit():
        return len(value) >= 5 or (len(value) == 4 and (quoted or prose))
    if _CODE.match(value):
        if digit:  # `hunter2`, but not `password2` or `arg1`
            return len(value) >= (6 if prose else 5) and not _ORDINARY.search(value)
        return quoted and mixed and len(value) >= 8 and drawn.jumbled(value)
    if digit:
        return True
    if special and any(byte in ALNUM for byte in value):
        return quoted or (len(value) >= 6 and not _EXPRESSION.search(value))
    return mixed and len(value) >= 8 and drawn.entropy(value) > 2.9


def _is_secret(value: bytes, head: bytes, quoted: bool) -> bool:
    """A token: letters and digits in no order, a UUID, or long hexadecimal digits."""
    if b" " in value:
        return _PHRASE.search(head) is not None and value.count(b" ") >= 5
    if len(value) < 8 or drawn.dull(value) or drawn.exemplary(value):
        return False
    if drawn.UUID.match(value):
        return True
    if value.isdigit():
        return len(value) >= 15 and drawn.entropy(value) > 2.5
    if value.startswith(_CODE_OPENINGS) and len(value) != 40:  # so long is an AWS secret
        return False
    if _NOT_SECRET.search(head.rpartition(b"\n")[2][-40:]) and not drawn.is_drawn(value):
        return False
    return _looks_drawn(value, quoted=quoted)


def _looks_drawn(value: bytes, *, quoted: bool) -> bool:
    """The shorter a value is, the more often must letters and digits follow each other in it."""
    switches, digit, mixed = drawn.switches(value), _has_digit(value), drawn.mixed(value)
    if len(value) < 12:
        return switches >= 2 and (quoted or mixed or _special(value))
    entropy = drawn.entropy(value)
    if len(value) < 20:
        return entropy > 2.8 and (switches >= 2 or (mixed and digit))
    if switches >= 3:
        return entropy > 2.9
    code = _CODE.match(value) is not None
    if mixed and entropy > 4.0 and (digit or not code):
        return True
    if digit and entropy > 3.5 and not code and not _DELIMITED.search(value):
        return True
    return len(value) >= 24 and value.isalnum() and entropy > 3.6 and _unspoken(value)


def _is_long_secret(value: bytes, head: bytes) -> bool:
    """What a weak name must hold: sixteen or more, drawn, and no identifier of a row."""
    if not drawn.is_drawn(value) or drawn.switches(value) < 4:
        return False
    if drawn.UUID.match(value) or b"://" in value or b" " in value or drawn.exemplary(value):
        return False
    if value.isdigit() or value.startswith((b"/", b"./", b"~/")) or _NOT_SECRET.search(head[-40:]):
        return False
    return not _FILE_OR_DATE.match(value)


def commands(scan: Scan) -> Iterator[Span]:
    """Yield what is given to commands and kept in cookies and password files."""
    for pattern in (_CURL_USER, _MYSQL):
        for match in scan.matches(pattern):
            yield from _option(match)
    for match in scan.matches(_COOKIE):
        for pair in _PAIR.finditer(match.group(1)):
            value = pair[2]
            if drawn.is_drawn(value) or (drawn.UUID.match(value) and _SESSION.search(pair[1])):
                at = match.start(1) + pair.start(2)
                yield Span(at, at + len(value), Label.API_KEY, "value of a cookie")
    for match in scan.matches(_PGPASS):
        value = match.group(1)
        if not drawn.stands_in(value) and (_has_digit(value) or _special(value)):
            yield scan.span(match, Label.API_KEY, "line of a password file", 1)


def _option(match: Found) -> Iterator[Span]:
    start = match.start(1)
    value = match.group(1).rstrip(b",;).?!")
    if _CHOICE.fullmatch(value):
        return
    if drawn.stands_in(value) or value[:1] in b"-/@<[|" or _TYPE.match(value):
        return
    if _has_digit(value) or (_special(value) and len(value) >= 6 and not _CODE.match(value)):
        yield Span(start, start + len(value), Label.API_KEY, "option that takes a secret")


def _lists(scan: Scan) -> Iterator[Span]:
    text = scan.text
    done = 0
    for match in scan.matches(_LISTED):
        if match.start() < done:
            continue
        limit = text.find(b"]", match.end(), match.end() + VALUE_BYTES_MAX)
        limit = limit if limit >= 0 else min(len(text), match.end() + VALUE_BYTES_MAX)
        for item in _ITEMS.finditer(text, match.end() - 1, limit):
            if drawn.stands_in(item[1]) or _is_dotted_name(item[1]):
                continue
            if _is_secret(item[1], b"", quoted=True):
                yield Span(*item.span(1), Label.API_KEY, "item of a telling name")
        done = limit


def _is_dotted_name(value: bytes) -> bool:
    """True for `decoder.block.0.layer.1.weight`: words and counts, none of them drawn."""
    parts = value.split(b".")
    return len(parts) > 2 and not any(drawn.is_drawn(part) for part in parts)


def _has_digit(value: bytes) -> bool:
    return any(48 <= byte <= 57 for byte in value)


def _special(value: bytes) -> bool:
    return any(byte not in WORD and byte not in b".-/: " for byte in value)


def _unspoken(value: bytes) -> bool:
    """True for letters that no word has: few vowels, or many capitals inside."""
    letters = [byte for byte in value.lower() if 97 <= byte <= 122]
    vowels = sum(byte in b"aeiou" for byte in letters)
    return not letters or vowels / len(letters) < 0.27
