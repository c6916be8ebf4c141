"""Capabilities: their form, narrowing and matching (credential.md, section 5)."""

import re

import ids
from refusal import Refused, demand
from strictjson import array_of, integer, object_of, string

VERBS = "select insert update delete truncate ddl admin call set copy lock listen".split()
_NO_IDENTIFIER = re.compile('[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff.*"]')


def _identifier(name):
    return 1 <= len(name.encode()) <= 63 and not _NO_IDENTIFIER.search(name)


def _list(value, good):
    demand(1 <= len(value) <= 64 and len(set(value)) == len(value), "details.value", "1 to 64 different entries")
    for entry in value:
        demand(good(entry), "details.value", entry)


def _table_pattern(entry):
    sides = entry.split(".")
    return len(sides) == 2 and all(s == "*" or _identifier(s) for s in sides)


_strings = array_of(string)
_postgres = object_of(
    {"type": string, "locations": _strings, "actions": _strings},
    {"databases": _strings, "tables": _strings, "max_rows": integer},
)


def _read_postgres(value):
    c = _postgres(value)
    _list(c["locations"], ids.is_target)
    _list(c["actions"], VERBS.__contains__)
    if "databases" in c:
        _list(c["databases"], _identifier)
    if "tables" in c:
        _list(c["tables"], _table_pattern)
    demand(c.get("max_rows", 1) >= 1, "details.value", "max_rows")
    return c


_READERS = {"deputy_postgres": _read_postgres}


def _read_one(value):
    demand(isinstance(value, dict), "json.type", "not an object")
    kind = object_of({"type": string}, open=True)(value)["type"]
    demand(kind in _READERS, "details.value", f"unknown type {kind}")
    return _READERS[kind](value)


def read(value):
    """The capabilities of a parsed JSON array."""
    demand(isinstance(value, list), "json.type", "not an array")
    demand(1 <= len(value) <= 16, "details.value", "1 to 16 objects")
    return [_read_one(v) for v in value]


def _sides(pattern):
    return pattern.split(".")


def _covers(pattern, schema, table=None):
    s, t = _sides(pattern)
    return s in ("*", schema) and (t == "*" or (table is not None and t == table))


def _one_within(c, p):
    if c["type"] != p["type"]:
        return False
    for name in ("locations", "actions"):
        if not set(c[name]) <= set(p[name]):
            return False
    if "databases" in p and not ("databases" in c and set(c["databases"]) <= set(p["databases"])):
        return False
    if "tables" in p:
        if "tables" not in c:
            return False
        for entry in c["tables"]:
            if not any(_covers(pattern, *_sides(entry)) for pattern in p["tables"]):
                return False
    return "max_rows" not in p or ("max_rows" in c and c["max_rows"] <= p["max_rows"])


def within(details, parents):
    return all(any(_one_within(d, p) for p in parents) for d in details)


def narrow(details, parents, cls="details.wider"):
    if not within(details, parents):
        raise Refused(cls, "more than the statement before allows")


def _one_matches(c, action):
    schema, table = action.get("schema", ""), action.get("table", "")
    if action["target"] not in c["locations"] or action["verb"] not in c["actions"]:
        return False
    database = action.get("database", "")
    if not database or database not in c.get("databases", [database]):
        return False
    if table and not schema:
        return False
    if "tables" not in c:
        return True
    if not schema:
        return action["verb"] in ("select", "set")
    return any(_covers(pattern, schema, table or None) for pattern in c["tables"])


def match(details, action):
    """(in, max_rows): whether some object covers the action; max_rows is None for no limit."""
    limits = [d.get("max_rows") for d in details if d["type"] == action["type"] and _one_matches(d, action)]
    if not limits:
        return False, None
    return True, None if None in limits else max(limits)
