"""Capabilities: their form, narrowing and matching (credential.md, section 5)."""

import re

import ids
from refusal import Refused, demand
from strictjson import array_of, integer, object_of, string

SSH_VERBS = ("exec shell subsystem forward remote-forward sftp-read sftp-write sftp-list sftp-stat sftp-rename sftp-remove sftp-setstat sftp-link").split()
MCP_VERBS = "call list read prompt complete subscribe sampling elicitation roots".split()
KUBE_VERBS = (
    "get list watch create update patch delete deletecollection exec attach portforward debug proxy token approve escalate bind reveal nonresource"
).split()
HTTP_VERBS = "get head options post put patch delete grpc upgrade query mutation subscription persisted".split()
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


_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
_FIRST = re.compile(r"[A-Za-z0-9_./:@+,-]+")
_WORD = re.compile(r"[A-Za-z0-9_./:@+,%-][A-Za-z0-9_./:@+,=%-]*")


def program(command):
    """The first word of a plain command, or None."""
    words = command.split(" ")
    if len(command.encode()) > 65536 or not _FIRST.fullmatch(words[0]) or not all(_WORD.fullmatch(w) for w in words[1:]):
        return None
    return words[0]


def _command(entry):
    return 1 <= len(entry.encode()) <= 4096 and not _CONTROL.search(entry)


def _program(entry):
    return len(entry.encode()) <= 256 and program(entry) == entry


def _account(entry):
    return re.fullmatch(r"[A-Za-z0-9._][A-Za-z0-9._-]{0,63}", entry) is not None


def _subsystem(entry):
    return re.fullmatch(r"[A-Za-z0-9.@_-]{1,64}", entry) is not None


def _path(entry):
    if entry == "/":
        return True
    if not entry.startswith("/") or len(entry.encode()) > 4096 or _CONTROL.search(entry):
        return False
    return not any(s in ("", ".", "..") for s in entry[1:].split("/"))


def _path_pattern(entry):
    return len(entry.encode()) <= 1024 and _path(entry) and "*" not in entry.removesuffix("/*")


def _forward(entry):
    if entry.startswith("/"):
        return _path(entry)
    m = re.fullmatch(r"([a-z0-9.-]{1,253}|\[[a-z0-9:.]{1,253}\]):([1-9][0-9]{0,4})", entry)
    return m is not None and int(m[2]) <= 65535


_SSH_LISTS = {
    "accounts": _account,
    "commands": _command,
    "programs": _program,
    "subsystems": _subsystem,
    "paths": _path_pattern,
    "forwards": _forward,
}
_ssh = object_of({"type": string, "locations": _strings, "actions": _strings}, {name: _strings for name in _SSH_LISTS})


def _read_ssh(value):
    c = _ssh(value)
    _list(c["locations"], ids.is_target)
    _list(c["actions"], SSH_VERBS.__contains__)
    for name, good in _SSH_LISTS.items():
        if name in c:
            _list(c[name], good)
    return c


_QUERY_KEY = re.compile("[^&;=#%+ ]{1,128}")
_ANY = re.compile(r"\{[A-Za-z0-9_-]{1,64}\}")


def http_path(entry):
    if not entry.startswith("/") or len(entry.encode()) > 4096 or _CONTROL.search(entry) or re.search(r"[\\;%?#]", entry):
        return False
    segments = entry[1:].split("/")
    return "" not in segments[:-1] and not any(s.endswith((".", " ")) for s in segments)


def _http_template(entry):
    if len(entry.encode()) > 1024 or not http_path(entry):
        return False
    segments = entry.split("/")
    if segments[-1] == "*":
        segments.pop()
    return all(_ANY.fullmatch(s) or not re.search("[*{}]", s) for s in segments)


def _query_key(entry):
    return _QUERY_KEY.fullmatch(entry) is not None and len(entry.encode()) <= 128 and not _CONTROL.search(entry)


_http = object_of({"type": string, "locations": _strings, "actions": _strings}, {"paths": _strings, "query": _strings})
_tcp = object_of({"type": string, "locations": _strings, "actions": _strings}, {})


def _read_http(value):
    c = _http(value)
    _list(c["locations"], ids.is_target)
    _list(c["actions"], HTTP_VERBS.__contains__)
    for name, good in {"paths": _http_template, "query": _query_key}.items():
        if name in c:
            _list(c[name], good)
    return c


def _read_tcp(value):
    c = _tcp(value)
    _list(c["locations"], ids.is_target)
    _list(c["actions"], ["connect"].__contains__)
    return c


_MCP_KINDS = {
    "call": ["tool"],
    "list": ["", "tool", "resource", "prompt"],
    "read": ["resource"],
    "prompt": ["prompt"],
    "complete": ["resource", "prompt"],
    "subscribe": ["", "resource"],
    "sampling": [""],
    "elicitation": [""],
    "roots": [""],
}
_SCHEME = re.compile("[a-z][a-z0-9+.-]{0,31}")
_URI_TEXT = re.compile(r"(?:[!$&-\[\]_a-z{|}~]|%[0-9A-F]{2})*")
_NEEDLESS = re.compile("%(?:[01][0-9A-F]|7F|2F|5C|25|3[0-9]|4[1-9A-F]|5[0-9A]|6[1-9A-F]|7[0-9A]|2D|2E|5F|7E)")


def _mcp_name(entry):
    return 1 <= len(entry.encode()) <= 128 and not _CONTROL.search(entry)


def _mcp_uri(entry):
    scheme, colon, rest = entry.partition(":")
    if len(entry.encode()) > 4096 or not colon or not _SCHEME.fullmatch(scheme):
        return False
    if not _URI_TEXT.fullmatch(rest) or re.search("[<>?]", rest) or _NEEDLESS.search(rest):
        return False
    authority = rest.startswith("//")
    segments = rest[2 if authority else 0 :].split("/")
    if authority and segments[0] != segments[0].lower():
        return False
    return not any(s in (".", "..") for s in segments) and "" not in segments[1:-1]


def _mcp_pattern(entry):
    return len(entry.encode()) <= 1024 and _mcp_uri(entry.removesuffix("*"))


_MCP_LISTS = {"tools": _mcp_name, "resources": _mcp_pattern, "prompts": _mcp_name}
_mcp = object_of({"type": string, "locations": _strings, "actions": _strings}, {name: _strings for name in _MCP_LISTS})


def _read_mcp(value):
    c = _mcp(value)
    _list(c["locations"], ids.is_target)
    _list(c["actions"], MCP_VERBS.__contains__)
    for name, good in _MCP_LISTS.items():
        if name in c:
            _list(c[name], good)
    return c


_LABEL = "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_DNS = r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*"
_KUBE_PATTERN = re.compile(rf"(?:{_LABEL}|\*)(?:\.({_DNS}|\*))?(?:/(?:{_LABEL}|\*))?")
_NAMESPACE_PATTERN = re.compile(rf"{_LABEL}|(?:[a-z0-9][a-z0-9-]{{0,62}})?\*")
_KUBE_NAME = re.compile("[A-Za-z0-9_:@+=,~!-][A-Za-z0-9._:@+=,~!-]*")
_PLAIN = "[A-Za-z0-9_./:@+,=%-]+"
_QUOTED = r"'((?:[^']|'\\'')*)'"
_KUBE_WORD = re.compile(f"{_PLAIN}|{_QUOTED}", re.DOTALL)


def _is(pattern):
    return lambda entry: re.fullmatch(pattern, entry) is not None


def _kube_pattern(entry):
    m = _KUBE_PATTERN.fullmatch(entry)
    return m is not None and len(m[1] or "") <= 253


def _kube_name(entry):
    return len(entry) <= 253 and _KUBE_NAME.fullmatch(entry) is not None and not entry.endswith(".")


def _name_pattern(entry):
    if entry.endswith("*") and len(entry) <= 253 and (entry == "*" or _KUBE_NAME.fullmatch(entry[:-1])):
        return True
    return _kube_name(entry)


def _joined(text):
    """Whether a text is that of a command's words, in its one form."""
    at = 0
    if len(text.encode()) > 65536:
        return False
    while True:
        m = _KUBE_WORD.match(text, at)
        if m is None or (m[1] is not None and re.fullmatch(_PLAIN, m[1].replace("'\\''", "'"))):
            return False
        at = m.end()
        if at == len(text):
            return True
        if text[at] != " ":
            return False
        at += 1


def kube_program(command):
    word = command.partition(" ")[0]
    return word if len(word) <= 256 and re.fullmatch(_PLAIN, word) else None


def _kube_command(entry):
    return _command(entry) and _joined(entry)


def _kube_program(entry):
    return kube_program(entry) == entry


def _kube_path(entry):
    begin = entry.removesuffix("*")
    if len(entry.encode()) > 1024 or "*" in begin or (begin != entry and not begin.endswith("/")):
        return False
    return http_path(begin)


_KUBE_LISTS = {
    "resources": _kube_pattern,
    "namespaces": _is(_NAMESPACE_PATTERN),
    "names": _name_pattern,
    "containers": _is(_LABEL),
    "commands": _kube_command,
    "programs": _kube_program,
    "paths": _kube_path,
}
_kube = object_of({"type": string, "locations": _strings, "actions": _strings}, {name: _strings for name in _KUBE_LISTS})


def _read_kube(value):
    c = _kube(value)
    _list(c["locations"], ids.is_target)
    _list(c["actions"], KUBE_VERBS.__contains__)
    for name, good in _KUBE_LISTS.items():
        if name in c:
            _list(c[name], good)
    return c


_READERS = {"deputy_kube": _read_kube, "deputy_mcp": _read_mcp, "deputy_postgres": _read_postgres, "deputy_ssh": _read_ssh, "deputy_http": _read_http, "deputy_tcp": _read_tcp}


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
    if c["type"] == "deputy_ssh":
        return _ssh_within(c, p)
    if c["type"] == "deputy_http":
        return _http_within(c, p)
    if c["type"] == "deputy_tcp":
        return True
    if c["type"] == "deputy_mcp":
        return _mcp_within(c, p)
    if c["type"] == "deputy_kube":
        return _kube_within(c, p)
    if "databases" in p and not ("databases" in c and set(c["databases"]) <= set(p["databases"])):
        return False
    if "tables" in p:
        if "tables" not in c:
            return False
        for entry in c["tables"]:
            if not any(_covers(pattern, *_sides(entry)) for pattern in p["tables"]):
                return False
    return "max_rows" not in p or ("max_rows" in c and c["max_rows"] <= p["max_rows"])


def _bounded(c):
    return "commands" in c or "programs" in c


def _runs(c, command):
    return command in c.get("commands", []) or program(command) in c.get("programs", [])


def _lies(paths, path):
    return any(p == path or (p.endswith("/*") and len(path) >= len(p) and path.startswith(p[:-1])) for p in paths)


def _ssh_within(c, p):
    for name in ("accounts", "subsystems", "forwards"):
        if name in p and not (name in c and set(c[name]) <= set(p[name])):
            return False
    if _bounded(p):
        if not _bounded(c) or not all(_runs(p, command) for command in c.get("commands", [])):
            return False
        if not set(c.get("programs", [])) <= set(p.get("programs", [])):
            return False
    return "paths" not in p or ("paths" in c and all(_lies(p["paths"], entry) for entry in c["paths"]))


def _template_covers(template, path):
    """Whether a template covers a path, or the template of a child."""
    have, want = path.split("/"), template.split("/")
    if want[-1] == "*":
        return len(have) >= len(want) and _segments_cover(want[:-1], have) and (have[len(want) - 1] != "" or len(have) > len(want))
    return len(have) == len(want) and _segments_cover(want, have)


def _segments_cover(want, have):
    return all(w == h or (_ANY.fullmatch(w) and h not in ("", "*")) for w, h in zip(want, have))


def _http_within(c, p):
    if "query" in p and not ("query" in c and set(c["query"]) <= set(p["query"])):
        return False
    return "paths" not in p or ("paths" in c and all(any(_template_covers(t, entry) for t in p["paths"]) for entry in c["paths"]))


def _uri_covers(patterns, uri):
    return any(p == uri or (p.endswith("*") and uri.removesuffix("*").startswith(p[:-1])) for p in patterns)


def _mcp_within(c, p):
    for name in ("tools", "prompts"):
        if name in p and not (name in c and set(c[name]) <= set(p[name])):
            return False
    return "resources" not in p or ("resources" in c and all(_uri_covers(p["resources"], entry) for entry in c["resources"]))


def _triple(pattern):
    rest, _, sub = pattern.partition("/")
    resource, _, group = rest.partition(".")
    return resource, group, sub


def _resource_covers(patterns, entry):
    have = _triple(entry)
    for p in patterns:
        resource, group, sub = _triple(p)
        if resource in ("*", have[0]) and group in ("*", have[1]) and (sub == have[2] or (sub == "*" and have[2] != "")):
            return True
    return False


def _begins(patterns, name):
    return name != "" and any(p == name or (p.endswith("*") and name.removesuffix("*").startswith(p[:-1])) for p in patterns)


def _below(patterns, path):
    return any(p == path or (p.endswith("*") and path.startswith(p[:-1]) and path != p[:-1]) for p in patterns)


def _kube_runs(c, command):
    return command in c.get("commands", []) or kube_program(command) in c.get("programs", [])


def _kube_within(c, p):
    if "containers" in p and not ("containers" in c and set(c["containers"]) <= set(p["containers"])):
        return False
    if _bounded(p):
        if not _bounded(c) or not set(c.get("programs", [])) <= set(p.get("programs", [])):
            return False
        if not all(_kube_runs(p, command) for command in c.get("commands", [])):
            return False
    for name, covers in {"resources": _resource_covers, "namespaces": _begins, "names": _begins, "paths": _below}.items():
        if name in p and not (name in c and all(covers(p[name], entry) for entry in c[name])):
            return False
    return True


def within(details, parents):
    return all(any(_one_within(d, p) for p in parents) for d in details)


def narrow(details, parents, cls="details.wider"):
    if not within(details, parents):
        raise Refused(cls, "more than the statement before allows")


def _ssh_matches(c, action):
    verb, account, what = action["verb"], action.get("account", ""), action.get("object", "")
    if action["target"] not in c["locations"] or verb not in c["actions"]:
        return False
    if not account or account not in c.get("accounts", [account]):
        return False
    if (what == "") != (verb == "shell"):
        return False
    if verb == "exec":
        return not _bounded(c) or _runs(c, what)
    if verb == "shell":
        return not _bounded(c)
    if verb == "subsystem":
        return not _bounded(c) and what in c.get("subsystems", [what])
    if verb in ("forward", "remote-forward"):
        return what in c.get("forwards", [what])
    return _path(what) and _lies(c.get("paths", [what]), what)


def _http_matches(c, action):
    path, query = action.get("path", ""), action.get("query", [])
    if action["target"] not in c["locations"] or action["verb"] not in c["actions"]:
        return False
    if not http_path(path) or ("paths" in c and not any(_template_covers(t, path) for t in c["paths"])):
        return False
    return "query" not in c or set(query) <= set(c["query"])


def _mcp_matches(c, action):
    verb, kind, what = action["verb"], action.get("kind", ""), action.get("object", "")
    if action["target"] not in c["locations"] or verb not in c["actions"] or kind not in _MCP_KINDS[verb]:
        return False
    if kind == "tool":
        return _mcp_name(what) and what in c.get("tools", [what])
    if kind == "prompt":
        return _mcp_name(what) and what in c.get("prompts", [what])
    if kind == "resource":
        return _mcp_uri(what) and not what.endswith("*") and ("resources" not in c or _uri_covers(c["resources"], what))
    return what == ""


_RBAC = "rbac.authorization.k8s.io"
_CSR = "certificates.k8s.io"
_ABOUT = {
    "exec": [("", "pods", "exec")],
    "attach": [("", "pods", "attach")],
    "portforward": [("", "pods", "portforward")],
    "debug": [("", "pods", "ephemeralcontainers")],
    "proxy": [("", "pods", "proxy"), ("", "services", "proxy"), ("", "nodes", "proxy")],
    "token": [("", "serviceaccounts", "token")],
    "approve": [(_CSR, "certificatesigningrequests", "approval"), (_CSR, "certificatesigningrequests", "status")],
    "escalate": [(_RBAC, "roles", ""), (_RBAC, "clusterroles", "")],
    "bind": [(_RBAC, "rolebindings", ""), (_RBAC, "clusterrolebindings", "")],
    "reveal": [("", "secrets", "")],
}
_BESIDE = ("escalate", "bind", "reveal")


def _kube_formed(action):
    verb = action["verb"]
    group, resource, sub, namespace, name, container, command, path = (
        action.get(m, "") for m in ("group", "resource", "subresource", "namespace", "name", "container", "command", "path")
    )
    if verb == "nonresource":
        return not any((group, resource, sub, namespace, name, container, command)) and http_path(path)
    what = (group, resource, sub)
    if verb in _ABOUT and what not in _ABOUT[verb]:
        return False
    for own, about in _ABOUT.items():
        if own not in _BESIDE and own != verb and what in about and (verb != "get" or own not in ("debug", "approve")):
            return False
    if path or (verb == "exec") != (command != "") or not re.fullmatch(_LABEL, resource):
        return False
    if group and (len(group) > 253 or not re.fullmatch(_DNS, group)):
        return False
    if not all(re.fullmatch(_LABEL, s) for s in (sub, namespace, container) if s):
        return False
    return (not name or _name_pattern(name)) and (not command or _joined(command))


def _kube_matches(c, action):
    verb, command = action["verb"], action.get("command", "")
    if action["target"] not in c["locations"] or verb not in c["actions"] or not _kube_formed(action):
        return False
    if verb == "nonresource":
        return "paths" not in c or _below(c["paths"], action["path"])
    inside = verb in ("exec", "attach", "debug")
    sub = action.get("subresource", "")
    pattern = action["resource"] + ("." + action["group"] if action.get("group") else "") + ("/" + sub if sub else "")
    if "resources" in c and not _resource_covers(c["resources"], pattern):
        return False
    for name, member in {"namespaces": "namespace", "names": "name"}.items():
        if name in c and not _begins(c[name], action.get(member, "")):
            return False
    if "containers" in c and (inside or sub == "log") and action.get("container", "") not in c["containers"]:
        return False
    return not (_bounded(c) and inside) or (verb == "exec" and _kube_runs(c, command))


def _one_matches(c, action):
    if c["type"] == "deputy_kube":
        return _kube_matches(c, action)
    if c["type"] == "deputy_mcp":
        return _mcp_matches(c, action)
    if c["type"] == "deputy_http":
        return _http_matches(c, action)
    if c["type"] == "deputy_tcp":
        return action["target"] in c["locations"] and action["verb"] in c["actions"]
    if c["type"] == "deputy_ssh":
        return _ssh_matches(c, action)
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
