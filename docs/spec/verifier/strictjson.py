"""Strict JSON (credential.md, section 2): one reading, or none.

Numbers stay text (class Number) until somebody asks for an integer, so that nothing is rounded.
"""

import re

from refusal import Refused, demand

MAX_DEPTH = 16
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_INTEGER = re.compile(r"(?:0|-?[1-9][0-9]*)\Z")
_SPACE = re.compile(r"[ \t\n\r]*")
_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
_ESCAPES = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_HEX4 = re.compile(r"[0-9a-fA-F]{4}")


class Number(str):
    """The text of a JSON number."""


def fold(name):
    """Unicode simple case folding, from Python's full one: what folds to several characters doesn't count."""

    def one(c):
        for folded in (c.casefold(), c.lower()):
            if len(folded) == 1:
                return folded
        return c

    return "".join(map(one, name))


def parse(data):
    """The value of a JSON document in bytes: dict, list, str, Number, bool or None."""
    return _parse(data, {})


def parse_with_bytes(data):
    """As parse, and for a document that is an object the exact bytes of each member's value."""
    spans = {}
    value = _parse(data, spans)
    return value, {name: data.decode()[a:b].encode() for name, (a, b) in spans.items()}


def _parse(data, spans):
    try:
        text = data.decode("utf-8", "strict")
    except UnicodeDecodeError as e:
        raise Refused("json.utf8", str(e)) from None
    return _Parser(text, spans).document()


class _Parser:
    def __init__(self, text, spans):
        self.text, self.at = text, 0
        self.spans = spans  # of the outermost object's values

    def document(self):
        value = self.value(0)
        self.space()
        demand(self.at == len(self.text), "json.trailing", f"at character {self.at}")
        return value

    def fail(self, cls="json.syntax", detail=""):
        raise Refused(cls, detail or f"at character {self.at}")

    def space(self):
        self.at = _SPACE.match(self.text, self.at).end()

    def peek(self):
        return self.text[self.at : self.at + 1]

    def take(self, wanted):
        if not self.text.startswith(wanted, self.at):
            self.fail()
        self.at += len(wanted)

    def value(self, depth):
        self.space()
        c = self.peek()
        if c == "{":
            return self.object(depth + 1)
        if c == "[":
            return self.array(depth + 1)
        if c == '"':
            return self.string()
        for word, value in (("true", True), ("false", False), ("null", None)):
            if self.text.startswith(word, self.at):
                self.at += len(word)
                return value
        match = _NUMBER.match(self.text, self.at)
        if not match:
            self.fail()
        self.at = match.end()
        return Number(match.group())

    def object(self, depth):
        if depth > MAX_DEPTH:
            self.fail("json.depth")
        members, folded = {}, set()
        self.take("{")
        self.space()
        if self.peek() == "}":
            self.at += 1
            return members
        while True:
            self.space()
            name = self.string()
            if name in members:
                self.fail("json.duplicate", name)
            if fold(name) in folded:
                self.fail("json.case", name)
            folded.add(fold(name))
            self.space()
            self.take(":")
            self.space()
            start = self.at
            members[name] = self.value(depth)
            if depth == 1:
                self.spans[name] = (start, self.at)
            self.space()
            if self.peek() == "}":
                self.at += 1
                return members
            self.take(",")

    def array(self, depth):
        if depth > MAX_DEPTH:
            self.fail("json.depth")
        items = []
        self.take("[")
        self.space()
        if self.peek() == "]":
            self.at += 1
            return items
        while True:
            items.append(self.value(depth))
            self.space()
            if self.peek() == "]":
                self.at += 1
                return items
            self.take(",")

    def string(self):
        self.take('"')
        out = []
        while True:
            plain = _PLAIN.match(self.text, self.at)
            out.append(plain.group())
            self.at = plain.end()
            c = self.peek()
            if c == "" or c < " ":
                self.fail()
            self.at += 1
            if c == '"':
                return "".join(out)
            c = self.peek()  # what follows the backslash
            self.at += 1
            if c in _ESCAPES and c:
                out.append(_ESCAPES[c])
            elif c == "u":
                out.append(self.escaped_rune())
            else:
                self.fail()

    def hex4(self):
        match = _HEX4.match(self.text, self.at)
        if not match:
            self.fail()
        self.at = match.end()
        return int(match.group(), 16)

    def escaped_rune(self):
        high = self.hex4()
        if not 0xD800 <= high <= 0xDFFF:
            return chr(high)
        if high >= 0xDC00 or not self.text.startswith("\\u", self.at):
            self.fail("json.utf8", "a lone surrogate")
        self.at += 2
        low = self.hex4()
        if not 0xDC00 <= low <= 0xDFFF:
            self.fail("json.utf8", "a lone surrogate")
        return chr(0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00))


# What a schema is made of: functions from a value to a value, which refuse the wrong type.


def string(value):
    demand(isinstance(value, str) and not isinstance(value, Number), "json.type", "not a string")
    return value


def boolean(value):
    demand(isinstance(value, bool), "json.type", "not a boolean")
    return value


def integer(value):
    demand(isinstance(value, Number), "json.type", "not an integer")
    demand(_INTEGER.match(value) and -(2**63) <= int(value) < 2**63, "json.range", value)
    return int(value)


def array_of(item):
    def read(value):
        demand(isinstance(value, list), "json.type", "not an array")
        return [item(v) for v in value]

    return read


def object_of(required, optional=None, open=False, unknown="json.unknown"):
    """Reads an object with these members (name -> reader). An open one may have others, which stay as they are."""
    optional = optional or {}
    defined = {**required, **optional}
    folded = {fold(name) for name in defined}

    def read(value):
        demand(isinstance(value, dict), "json.type", "not an object")
        for name in value:
            demand(name in defined or fold(name) not in folded, "json.case", name)
        result = {}
        for name, reader in defined.items():
            if name in value:
                result[name] = reader(value[name])
            else:
                demand(name not in required, "json.missing", name)
        for name in value:
            if name not in defined:
                demand(open, unknown, name)
                result[name] = value[name]
        return result

    return read
