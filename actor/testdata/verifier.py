#!/usr/bin/env python3
"""A second verifier, written from docs/spec/credential.md alone.

It shares no code with the Go package and judges the same vectors, so that the
specification, and not one implementation of it, says what a credential is.
It is for checking, not for use. Needs python3 and python3-cryptography:

    python3 actor/testdata/verifier.py actor/testdata/vectors
"""

import base64
import datetime
import hashlib
import json
import re
import sys
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

SKEW = 30


class Refused(Exception):
    def __init__(self, cls, why="", hop=None):
        super().__init__(f"{cls}: {why}")
        self.cls, self.hop = cls, hop


def refuse(cls, why=""):
    raise Refused(cls, why)


def need(ok, cls, why=""):
    if not ok:
        refuse(cls, why)


def at(hop, call, *args):
    try:
        return call(*args)
    except Refused as e:
        if e.hop is None:
            e.hop = hop
        raise


# --- 2 Encodings


def b64url(s):
    need(re.fullmatch(r"[A-Za-z0-9_-]*", s) and len(s) % 4 != 1, "credential.base64")
    out = base64.urlsafe_b64decode(s + "=" * (-len(s) % 4))
    need(unb64url(out) == s, "credential.base64", "stray bits")
    return out


def unb64url(b):
    return base64.urlsafe_b64encode(b).decode().rstrip("=")


def hash_of(text):
    return unb64url(hashlib.sha256(text.encode()).digest())


def is_hash(s):
    try:
        return len(b64url(s)) == 32
    except Refused:
        return False


class Int(int):
    """An integer that was written as one."""


def fold(name):
    # Simple case folding: casefold where it stays one character.
    return "".join(c.casefold() if len(c.casefold()) == 1 else c for c in name)


class StrictJSON:
    number = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")

    def __init__(self, data):
        try:
            self.text = data.decode("utf-8", "strict")
        except UnicodeDecodeError:
            refuse("json.utf8")
        self.pos = 0

    def document(self):
        self.space()
        value = self.value(0)
        self.space()
        need(self.pos == len(self.text), "json.trailing")
        return value

    def peek(self):
        return self.text[self.pos] if self.pos < len(self.text) else ""

    def space(self):
        while self.peek() and self.peek() in " \t\r\n":
            self.pos += 1

    def value(self, depth):
        c = self.peek()
        if c == "{" or c == "[":
            need(depth < 16, "json.depth")
            return self.members(depth + 1) if c == "{" else self.elements(depth + 1)
        if c == '"':
            return self.string()
        for literal, value in (("true", True), ("false", False), ("null", None)):
            if self.text.startswith(literal, self.pos):
                self.pos += len(literal)
                return value
        m = self.number.match(self.text, self.pos)
        need(m, "json.syntax")
        self.pos = m.end()
        if m.group(2) or m.group(3) or m.group(0) == "-0" or not -(2**63) <= int(m.group(1)) <= 2**63:
            return float("nan")  # a number, but no integer of ours
        n = int(m.group(0))
        return Int(n) if -(2**63) <= n < 2**63 else float("nan")

    def elements(self, depth):
        out = []
        self.pos += 1
        self.space()
        if self.peek() == "]":
            self.pos += 1
            return out
        while True:
            self.space()
            out.append(self.value(depth))
            self.space()
            c = self.peek()
            self.pos += 1
            if c == "]":
                return out
            need(c == ",", "json.syntax")

    def members(self, depth):
        out, folded = {}, set()
        self.pos += 1
        self.space()
        if self.peek() == "}":
            self.pos += 1
            return out
        while True:
            self.space()
            need(self.peek() == '"', "json.syntax")
            name = self.string()
            need(name not in out, "json.duplicate", name)
            need(fold(name) not in folded, "json.case", name)
            folded.add(fold(name))
            self.space()
            need(self.peek() == ":", "json.syntax")
            self.pos += 1
            self.space()
            out[name] = self.value(depth)
            self.space()
            c = self.peek()
            self.pos += 1
            if c == "}":
                return out
            need(c == ",", "json.syntax")

    def string(self):
        self.pos += 1
        out = []
        while True:
            c = self.peek()
            need(c and c >= " ", "json.syntax")
            self.pos += 1
            if c == '"':
                return "".join(out)
            if c != "\\":
                out.append(c)
                continue
            e = self.peek()
            self.pos += 1
            if e == "u":
                n = self.hex4()
                if 0xD800 <= n < 0xE000:
                    need(n < 0xDC00 and self.text.startswith("\\u", self.pos), "json.utf8")
                    self.pos += 2
                    low = self.hex4()
                    need(0xDC00 <= low < 0xE000, "json.utf8")
                    n = 0x10000 + ((n - 0xD800) << 10) + low - 0xDC00
                out.append(chr(n))
            else:
                need(e and e in '"\\/bfnrt', "json.syntax")
                out.append({"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}.get(e, e))

    def hex4(self):
        m = re.compile(r"[0-9A-Fa-f]{4}").match(self.text, self.pos)
        need(m, "json.syntax")
        self.pos = m.end()
        return int(m.group(0), 16)


def typed(value, kind):
    if kind is int:
        need(isinstance(value, (int, float)) and not isinstance(value, bool), "json.type")
        need(isinstance(value, Int), "json.range")
    else:
        need(isinstance(value, kind) and not (kind is not bool and isinstance(value, bool)), "json.type")
    return value


def take(value, required, optional=()):
    """The members of an object with a closed set of names and their types."""
    typed(value, dict)
    known = dict(required) | dict(optional)
    for name in value:
        if name in known:
            continue
        for k in known:
            need(fold(name) != fold(k), "json.case", name)
    for name in required:
        need(name in value, "json.missing", name)
    for name, v in value.items():
        need(name in known, "json.unknown", name)
        typed(v, known[name])
    return value


# --- 1 Identifiers

CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")
HEX = re.compile(r"[0-9a-f]{32}")


def text(s, least, most):
    need(least <= len(s.encode()) <= most and not CONTROL.search(s), "claim.value", s)


def hex_id(s):
    need(HEX.fullmatch(s), "claim.value", s)


def spiffe(s):
    m = re.fullmatch(r"spiffe://([a-z0-9._-]+)((?:/[A-Za-z0-9._-]+)*)", s)
    if not m or any(seg in (".", "..") for seg in m.group(2).split("/")):
        return None
    return m.group(1), m.group(2)


def agent(s):
    parts = spiffe(s)
    need(parts and parts[1].startswith("/agent/"), "actor.not-agent", s)
    seg = parts[1].split("/")[2:]
    need(len(seg) % 2 == 0, "actor.not-agent", s)
    for name, instance in zip(seg[::2], seg[1::2]):
        need(NAME.fullmatch(name) and HEX.fullmatch(instance), "actor.not-agent", s)
    return s


def is_target(s):
    parts = spiffe(s)
    return bool(parts and parts[1].startswith("/target/") and NAME.fullmatch(parts[1][8:]))


def domain(s):
    return spiffe(s)[0]


def depth(a):
    return (a[len("spiffe://" + domain(a)):].count("/") - 1) // 2


def is_child(a, parent):
    return depth(a) > 1 and a.rsplit("/", 2)[0] == parent


def pattern_matches(pattern, a):
    p, s = pattern.split("/"), spiffe(a)[1].split("/")
    return len(p) == len(s) and all(x in ("*", y) for x, y in zip(p, s))


def issuer_url(s):
    ok = len(s) <= 512 and re.fullmatch(r"https?://[!-~]+", s) and not re.search("[?#]", s)
    if ok:
        u = urlsplit(s)
        ok = u.hostname and "@" not in u.netloc
    need(ok, "claim.value", s)


def user(v):
    take(v, {"format": str, "iss": str, "sub": str})
    need(v["format"] == "iss_sub", "claim.value")
    issuer_url(v["iss"])
    text(v["sub"], 1, 255)
    return v["iss"], v["sub"]


def times(iat, exp):
    need(0 < iat < exp <= 2**37, "claim.value")


# --- 5 Capabilities

VERBS = "select insert update delete truncate ddl admin call set copy lock".split()


def details(v):
    typed(v, list)
    for d in v:
        typed(d, dict)
        need("type" in d, "json.missing", "type")
        typed(d["type"], str)
        need(d["type"] == "deputy_postgres", "details.value")
        take(d, {"type": str, "locations": list, "actions": list}, {"databases": list, "tables": list, "max_rows": int})
        need(d.get("max_rows", 1) >= 1, "details.value")
        for name in ("locations", "actions", "databases", "tables"):
            for entry in d.get(name, []):
                typed(entry, str)
    need(1 <= len(v) <= 16, "details.value")
    for d in v:
        for name in ("locations", "actions", "databases", "tables"):
            if name in d:
                need(1 <= len(d[name]) <= 64 and len(set(d[name])) == len(d[name]), "details.value")
        need(all(is_target(x) for x in d["locations"]) and all(x in VERBS for x in d["actions"]), "details.value")
        need(all(identifier(x) for x in d.get("databases", [])), "details.value")
        for t in d.get("tables", []):
            sides = t.split(".")
            need(len(sides) == 2 and all(x == "*" or identifier(x) for x in sides), "details.value", t)
    return v


def identifier(s):
    return 1 <= len(s.encode()) <= 63 and not CONTROL.search(s) and not re.search(r'[.*"]', s)


def covers(pattern, table):
    return all(p in ("*", t) for p, t in zip(pattern.split("."), table.split(".")))


def object_within(c, p):
    return (
        set(c["locations"]) <= set(p["locations"])
        and set(c["actions"]) <= set(p["actions"])
        and ("databases" not in p or "databases" in c and set(c["databases"]) <= set(p["databases"]))
        and ("tables" not in p or "tables" in c and all(any(covers(q, t) for q in p["tables"]) for t in c["tables"]))
        and ("max_rows" not in p or "max_rows" in c and c["max_rows"] <= p["max_rows"])
    )


def within(child, parent, cls="details.wider"):
    need(all(any(object_within(c, p) for p in parent) for c in child), cls)


def object_covers(d, a):
    schema, table, db = a.get("schema", ""), a.get("table", ""), a.get("database", "")
    if a["target"] not in d["locations"] or a["verb"] not in d["actions"] or not db or table and not schema:
        return False
    if "databases" in d and db not in d["databases"]:
        return False
    if "tables" not in d:
        return True
    if not schema:
        return a["verb"] in ("select", "set")
    for pattern in d["tables"]:
        s, t = pattern.split(".")
        if s in ("*", schema) and (t == "*" or table and t == table):
            return True
    return False


def match(d, a):
    """(in, limit); a limit of 0 is none."""
    limits = [o.get("max_rows", 0) for o in d if object_covers(o, a)]
    if not limits:
        return False, 0
    return True, 0 if 0 in limits else max(limits)


# --- 3 Statements


class Part:
    def __init__(self, raw):
        self.raw = raw
        members = raw.split(".")
        need(len(members) == 3 and all(members), "credential.parts")
        self.input = ".".join(members[:2]).encode()
        self.header_bytes, self.claims_bytes, self.signature = (b64url(m) for m in members)

    def typ(self):
        h = typed(StrictJSON(self.header_bytes).document(), dict)
        return typed(h["typ"], str) if "typ" in h else ""

    def read_header(self, typ, key):
        h = StrictJSON(self.header_bytes).document()
        try:
            take(h, {}, {"alg": str, "typ": str, "kid": str, "jwk": dict, "x5c": list})
            if "jwk" in h:
                take(h["jwk"], {"kty": str, "crv": str, "x": str, "y": str})
            for c in h.get("x5c", []):
                typed(c, str)
        except Refused as e:
            if e.cls == "json.unknown":
                refuse("header.member")
            raise
        need(h.get("typ") == typ, "header.typ")
        need(h.get("alg") == "ES256", "header.alg")
        for name in ("kid", "jwk", "x5c"):
            need((name in h) == (name == key), "header.member", name)
        return h

    def claims(self):
        return StrictJSON(self.claims_bytes).document()

    def verify(self, key, cls):
        try:
            need(len(self.signature) == 64, cls)
            r, s = int.from_bytes(self.signature[:32], "big"), int.from_bytes(self.signature[32:], "big")
            key.verify(encode_dss_signature(r, s), self.input, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            refuse(cls)


def jwk_key(j):
    need(j["kty"] == "EC" and j["crv"] == "P-256", "header.key")
    try:
        x, y = b64url(j["x"]), b64url(j["y"])
        need(len(x) == len(y) == 32, "header.key")
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + x + y)
    except (ValueError, Refused):
        refuse("header.key")


def thumbprint(j):
    return hash_of('{"crv":"%s","kty":"%s","x":"%s","y":"%s"}' % (j["crv"], j["kty"], j["x"], j["y"]))


def on_p256(key):
    return isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)


def parse_x5c(entries):
    need(1 <= len(entries) <= 4, "header.key")
    out = []
    for e in entries:
        try:
            der = base64.b64decode(e, validate=True)
        except ValueError:
            refuse("credential.base64")
        need(base64.b64encode(der).decode() == e, "credential.base64")
        try:
            out.append(x509.load_der_x509_certificate(der))
        except ValueError:
            refuse("header.key")
    need(on_p256(out[0].public_key()), "header.key")
    return out


def read_user_grant(part):
    h = part.read_header("deputy-user-grant+jwt", "jwk")
    part.jwk, part.key = h["jwk"], jwk_key(h["jwk"])
    c = take(part.claims(), {"iss": str, "root": dict, "delegate": str, "mesh": str, "sub_id": dict, "txn": str, "cap": list,
                             "left": int, "purpose": str, "iat": int, "exp": int, "jti": str})
    root = take(c["root"], {"type": str, "iss": str, "th": str, "sid": str})
    need(root["type"] == "id_token" and is_hash(root["th"]), "claim.value")
    issuer_url(c["iss"]), issuer_url(root["iss"]), text(root["sid"], 1, 255)
    agent(c["delegate"])
    common_claims(c)
    return c


def common_claims(c):
    issuer_url(c["mesh"])
    c["user"] = user(c["sub_id"])
    hex_id(c["txn"]), hex_id(c["jti"]), details(c["cap"]), text(c["purpose"], 0, 200), times(c["iat"], c["exp"])
    need(0 <= c["left"] <= 7, "claim.value")


def read_grant(part):
    h = part.read_header("deputy-grant+jwt", "x5c")
    part.chain = parse_x5c(h["x5c"])
    c = take(part.claims(), {"iss": str, "delegate": str, "mesh": str, "sub_id": dict, "txn": str, "prh": str, "cap": list,
                             "left": int, "purpose": str, "iat": int, "exp": int, "jti": str})
    agent(c["iss"]), agent(c["delegate"])
    need(is_hash(c["prh"]), "claim.value")
    common_claims(c)
    return c


def read_token(part):
    part.kid = part.read_header("at+jwt", "kid")["kid"]
    c = take(part.claims(), {"iss": str, "aud": str, "sub": str, "sub_id": dict, "sid": str, "auth_time": int, "client_id": str,
                             "act": dict, "cnf": dict, "authorization_details": list, "roles": list, "purpose": str, "txn": str,
                             "iat": int, "nbf": int, "exp": int, "jti": str}, {"acr": str, "head": str})
    c["user"] = user(c["sub_id"])
    level, c["acts"] = c["act"], []
    while level is not None:
        take(level, {"sub": str, "iss": str, "sub_profile": str}, {"act": dict})
        agent(level["sub"])
        need(level["sub_profile"] == "ai_agent", "claim.value")
        c["acts"].append(level)
        level = level.get("act")
    agent(c["client_id"])
    need(is_target(c["aud"]), "token.audience")
    name = "u_" + unb64url(hashlib.sha256("\n".join(c["user"]).encode()).digest()[:16])
    need(c["sub"] == name, "claim.value", "sub")
    take(c["cnf"], {"x5t#S256": str})
    need(is_hash(c["cnf"]["x5t#S256"]) and is_hash(c.get("head", hash_of(""))), "claim.value")
    for r in c["roles"]:
        text(typed(r, str), 1, 255)
    need(len(c["roles"]) <= 64 and len(set(c["roles"])) == len(c["roles"]), "claim.value")
    issuer_url(c["iss"]), text(c["sid"], 1, 255), text(c.get("acr", ""), 0, 255), text(c["purpose"], 0, 200)
    hex_id(c["txn"]), hex_id(c["jti"]), details(c["authorization_details"]), times(c["iat"], c["exp"])
    need(0 < c["nbf"] <= c["exp"] and 0 < c["auth_time"] <= 2**37, "claim.value")
    return c


def read_id_token(part):
    h = typed(StrictJSON(part.header_bytes).document(), dict)
    typed(part.claims(), dict)
    need(not {"jku", "x5u", "jwk", "crit"} & set(h), "header.member")
    need(re.fullmatch(r"(RS|PS|ES)(256|384|512)|EdDSA|Ed25519", typed(h.get("alg", ""), str)), "header.alg")


# --- 4 Credential and subject


def split_parts(s):
    need(1 <= len(s) <= 32768, "credential.size")
    need(re.fullmatch(r"[A-Za-z0-9._~-]+", s), "credential.alphabet")
    raw = s.split("~")
    need(len(raw) <= 10, "credential.parts")
    return [Part(r) for r in raw]


OURS = ("at+jwt", "deputy-grant+jwt", "deputy-user-grant+jwt")


class Lineage:
    """What follows the token; grants oldest first."""

    def __init__(self, parts):
        types = [p.typ() for p in parts]
        n = 0
        while n < len(parts) and types[n] == "deputy-grant+jwt":
            n += 1
        self.grants, self.user, self.id_token = [], None, None
        for i, p in enumerate(parts[:n]):
            self.grants.insert(0, (p, at(n - i, read_grant, p)))
        if n < len(parts) and types[n] == "deputy-user-grant+jwt":
            self.user = (parts[n], at(0, read_user_grant, parts[n]))
            n += 1
        if n < len(parts):
            need(types[n] not in OURS, "credential.order")
            need(n + 1 == len(parts), "header.typ")
            read_id_token(parts[n])
            self.id_token = parts[n]

    def named(self):
        out = []
        if self.user:
            out.append(self.user[1]["delegate"])
        elif self.grants:
            out.append(self.grants[0][1]["iss"])
        return out + [c["delegate"] for _, c in self.grants]

    def newest(self):
        return self.grants[-1] if self.grants else self.user


# --- 6 Grades, 1 Peer

OID = x509.ObjectIdentifier("1.3.6.1.4.1.32473.1.1")


def der(data):
    """One DER value: tag, content, rest."""
    need(len(data) >= 2, "grade.extension")
    tag, n, pos = data[0], data[1], 2
    if n >= 0x80:
        k = n & 0x7F
        need(1 <= k <= 3 and len(data) >= 2 + k, "grade.extension")
        n, pos = int.from_bytes(data[2:2 + k], "big"), 2 + k
        need(n >= 0x80 and n.bit_length() > 8 * (k - 1), "grade.extension")
    need(len(data) >= pos + n, "grade.extension")
    return tag, data[pos:pos + n], data[pos + n:]


def der_int(data, tag=2):
    t, content, rest = der(data)
    need(t == tag and content, "grade.extension")
    need(len(content) == 1 or not (content[0] == 0 and content[1] < 0x80 or content[0] == 0xFF and content[1] >= 0x80), "grade.extension")
    return int.from_bytes(content, "big", signed=True), rest


def der_text(data, most):
    t, content, rest = der(data)
    need(t == 0x0C and len(content) <= most, "grade.extension")
    try:
        s = content.decode()
    except UnicodeDecodeError:
        refuse("grade.extension")
    need(not CONTROL.search(s), "grade.extension")
    return s, rest


def grade(cert):
    try:
        found = cert.extensions.get_extension_for_oid(OID)
    except x509.ExtensionNotFound:
        return "asserted"
    except (ValueError, x509.DuplicateExtension):
        refuse("grade.extension")
    need(not found.critical, "grade.extension")
    tag, body, rest = der(found.value.value)
    need(tag == 0x30 and not rest, "grade.extension")
    version, body = der_int(body)
    value, body = der_int(body, 0x0A)
    need(version == 1 and value in (0, 1), "grade.extension")
    if not body:
        need(value == 0, "grade.extension")
        return "asserted"
    tag, e, rest = der(body)
    need(tag == 0x30 and not rest, "grade.extension")
    kind, e = der_text(e, 32)
    need(NAME.fullmatch(kind), "grade.extension")
    for _ in range(2):
        n, e = der_int(e)
        need(0 <= n < 2**32, "grade.extension")
    _, e = der_text(e, 1024)
    tag, sha, e = der(e)
    need(tag == 4 and len(sha) in (0, 32), "grade.extension")
    _, e = der_text(e, 1024)
    need(not e, "grade.extension")
    return "attested" if value else "asserted"


def spiffe_of(cert):
    try:
        san = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = san.get_values_for_type(x509.UniformResourceIdentifier)
    except (x509.ExtensionNotFound, ValueError):
        return None
    return uris[0] if len(uris) == 1 and spiffe(uris[0]) else None


def utc(moment):
    return int(moment.replace(tzinfo=datetime.timezone.utc).timestamp())


def end_of(cert):
    return utc(getattr(cert, "not_valid_after_utc", None) or cert.not_valid_after)


def start_of(cert):
    return utc(getattr(cert, "not_valid_before_utc", None) or cert.not_valid_before)


def check_path(chain, bundle, now, cls):
    """The path check; returns the earliest end of its certificates."""
    leaf = chain[0]
    need(len(chain) <= 4 and on_p256(leaf.public_key()), cls)
    try:
        usage = leaf.extensions.get_extension_for_class(x509.KeyUsage).value
        need(usage.digital_signature and not usage.key_cert_sign and not usage.crl_sign, cls)
        need(not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca, cls)
    except x509.ExtensionNotFound:
        refuse(cls)

    def valid(c):
        return start_of(c) <= now <= end_of(c)

    def issued(c, by):
        try:
            if c.issuer != by.subject:
                return False
            by.public_key().verify(c.signature, c.tbs_certificate_bytes, ec.ECDSA(c.signature_hash_algorithm))
            return by.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        except (InvalidSignature, x509.ExtensionNotFound):
            return False

    def search(c, left):
        if not valid(c):
            return None
        for root in bundle:
            if valid(root) and issued(c, root):
                return min(end_of(c), end_of(root))
        for i, mid in enumerate(left):
            if issued(c, mid):
                end = search(mid, left[:i] + left[i + 1:])
                if end is not None:
                    return min(end_of(c), end)
        return None

    end = search(leaf, chain[1:])
    need(end is not None, cls)
    return end


def x5t(cert):
    return unb64url(cert.fingerprint(hashes.SHA256()))


# --- 8 Verification


class Verifier:
    def __init__(self, env, settings):
        s = dict(env["settings"])
        s.update(settings or {})
        self.now, self.target = s["now"], s.get("target")
        self.td, self.mesh = env["trust_domain"], env["mesh"]
        self.bundle = certs(env["bundles"][self.td])
        self.verified = s["root_evidence"] == "verified"
        self.demand_user = s.get("require_user_grant", False)
        self.max_actors, self.max_session = s["max_actors"], s["max_session_seconds"]
        self.pairs, self.revoked = s.get("delegations", []), s.get("revoked", [])
        self.idp = env["identity_provider"]
        self.keys = {}
        for raw in env["key_statements"]:
            c = key_statement(raw, jwk_key(env["certifying_key"]), self.mesh)
            self.keys[c["kid"]] = c
        self.ends, self.cert_ends = [], []

    def future(self, t):
        return t > self.now + SKEW

    def passed(self, t):
        return self.now >= t + SKEW

    def peer(self, chain):
        need(chain, "peer.certificate")
        self.leaf, self.id = chain[0], spiffe_of(chain[0])
        need(self.id, "peer.certificate")
        need(domain(self.id) == self.td, "peer.trust-domain")
        self.cert_ends.append(check_path(chain, self.bundle, self.now, "peer.certificate"))
        agent(self.id)

    def credential(self, chain, s):
        self.peer(chain)
        parts = split_parts(s)
        t, self.l = read_token(parts[0]), Lineage(parts[1:])
        need(self.l.user or not self.l.id_token, "credential.order")
        self.token(parts[0], t)
        self.shape(t)
        newest = self.l.newest()
        need(t.get("head") == (hash_of(newest[0].raw) if newest else None), "grant.head")
        self.grants(t["txn"], t["user"])
        need(t["exp"] <= end_of(self.leaf), "token.outlives")
        if newest:
            need(t["exp"] <= newest[1]["exp"], "token.outlives")
            within(t["authorization_details"], newest[1]["cap"], "token.details")
        if self.l.user:
            need(t["purpose"] == self.l.user[1]["purpose"], "token.purpose")
        evidence = self.root(t)
        hops = self.hops(t["user"], evidence)
        keys = self.revocation_keys(t["user"], t["sid"], t["txn"], hops)
        keys += [("statement", self.mesh, t["jti"]), ("target", "", self.target)]
        self.check_revoked(keys)
        return {"user": {"format": "iss_sub", "iss": t["user"][0], "sub": t["user"][1]}, "sid": t["sid"], "txn": t["txn"],
                "root_evidence": evidence, "hops": hops, "lowest_grade": lowest(hops), "expires": min(self.ends + self.cert_ends),
                "authorization_details": t["authorization_details"], "purpose": t["purpose"], "revocation_keys": written(keys)}

    def token(self, part, t):
        k = self.keys.get(part.kid)
        need(k and self.now >= k["nbf"] - SKEW and not self.passed(k["exp"]), "token.key")
        part.verify(jwk_key(k["jwk"]), "token.signature")
        need(t["iss"] == self.mesh, "token.issuer")
        need(t["aud"] == self.target, "token.audience")
        need(not self.future(t["nbf"]) and not self.future(t["iat"]), "token.not-yet")
        need(not self.passed(t["exp"]), "token.expired")
        need(t["exp"] - t["iat"] <= 300, "token.lifetime")
        self.ends.append(t["exp"])
        need(t["act"]["sub"] == self.id, "presenter.actor")
        need(t["client_id"] == self.id, "presenter.client")
        need(t["cnf"]["x5t#S256"] == x5t(self.leaf), "presenter.binding")

    def shape(self, t):
        need(len(t["acts"]) <= self.max_actors, "actor.count")
        seen = set()
        for a in t["acts"]:
            need(domain(a["sub"]) == self.td and a["iss"] == "spiffe://" + self.td, "actor.trust-domain")
            need(a["sub"] not in seen, "actor.repeated")
            seen.add(a["sub"])
        need(self.l.user or not (self.verified or self.demand_user), "root.user-grant")
        actors, named = [a["sub"] for a in reversed(t["acts"])], self.l.named()
        need(actors == named or not named and len(actors) == 1, "actor.grants")

    def grants(self, txn, who):
        before = None
        if self.l.user:
            at(0, self.user_grant, txn, who)
            before = self.l.user
        for i, g in enumerate(self.l.grants):
            at(i + 1, self.grant, g, before, txn, who)
            before = g

    def common(self, c, txn, who):
        need(not self.future(c["iat"]), "grant.not-yet")
        need(not self.passed(c["exp"]), "grant.expired")
        need(c["mesh"] == self.mesh, "grant.mesh")
        need(c["txn"] == txn, "grant.txn")
        need(c["user"] == who, "grant.subject")
        self.ends.append(c["exp"])

    def user_grant(self, txn, who):
        part, c = self.l.user
        need(c["iss"] == c["root"]["iss"] == c["user"][0], "grant.issuer")
        part.verify(part.key, "grant.signature")
        self.common(c, txn, who)
        need(domain(c["delegate"]) == self.td, "grant.trust-domain")
        need(depth(c["delegate"]) == 1, "grant.child")

    def grant(self, g, before, txn, who):
        part, c = g
        leaf = part.chain[0]
        need(domain(c["iss"]) == self.td, "grant.trust-domain")
        name = spiffe_of(leaf)
        need(name, "grant.certificate")
        need(domain(name) == self.td, "grant.trust-domain")
        end = check_path(part.chain, self.bundle, self.now, "grant.certificate")
        need(name == c["iss"], "grant.issuer")
        part.verify(leaf.public_key(), "grant.signature")
        self.common(c, txn, who)
        need(c["exp"] <= end_of(leaf), "grant.outlives-svid")
        self.cert_ends.append(end)
        if before:
            need(c["prh"] == hash_of(before[0].raw), "grant.prh")
            need(c["iss"] == before[1]["delegate"], "grant.delegate")
        elif self.l.id_token:
            need(c["prh"] == hash_of(self.l.id_token.raw), "grant.prh")
        need(domain(c["delegate"]) == self.td, "grant.trust-domain")
        need(is_child(c["delegate"], c["iss"]) or any(
            pattern_matches(p["delegator"], c["iss"]) and pattern_matches(p["delegate"], c["delegate"]) for p in self.pairs), "grant.child")
        if before:
            need(c["left"] < before[1]["left"], "grant.left")
            need(c["exp"] <= before[1]["exp"], "grant.exp")
            within(c["cap"], before[1]["cap"], "grant.cap")

    def age(self, auth_time):
        end = auth_time + self.max_session
        need(not self.future(auth_time) and not self.passed(end), "root.age")
        self.ends.append(end)

    def root(self, t):
        self.age(t["auth_time"])
        if self.l.user:
            need(t["sid"] == self.l.user[1]["root"]["sid"], "root.sid")
        if not self.l.id_token:
            need(not self.verified, "root.id-token-missing")
            return "broker"
        need(hash_of(self.l.id_token.raw) == self.l.user[1]["root"]["th"], "root.hash")
        claims = self.identity()
        need(claims.get("auth_time", claims["iat"]) == t["auth_time"] and claims.get("acr") == t.get("acr"), "root.auth-time")
        return "verified"

    def identity(self):
        part = self.l.id_token
        part.verify(jwk_key(self.idp["key"]), "root.id-token")
        c = part.claims()
        need(c["iss"] == self.idp["issuer"] and c["aud"] == self.idp["client_id"], "root.id-token")
        if self.l.user:
            grant, g = self.l.user
            need((c["iss"], c["sub"]) == g["user"], "root.subject")
            need(c.get("nonce") == thumbprint(grant.jwk), "root.nonce")
            need(g["root"]["sid"] == c.get("sid", g["root"]["th"]), "root.sid")
        return c

    def hops(self, who, evidence):
        first = {"id": "#".join(who), "grade": "attested" if evidence == "verified" else "asserted"}
        if self.l.user:
            first["jti"] = self.l.user[1]["jti"]
        out = [first]
        for i, (part, c) in enumerate(self.l.grants):
            out.append({"id": c["iss"], "grade": at(i + 1, grade, part.chain[0]), "jti": c["jti"]})
        return out + [{"id": self.id, "grade": at(len(self.l.grants) + 1, grade, self.leaf)}]

    def revocation_keys(self, who, sid, txn, hops):
        keys = [("sub_id", *who), ("sid", who[0], sid)] + ([("txn", "", txn)] if txn else [])
        agents = set()
        for i, h in enumerate(hops):
            if i:
                a = h["id"]
                while a not in agents:
                    agents.add(a)
                    keys.append(("actor", "", a))
                    if depth(a) > 1:
                        a = a.rsplit("/", 2)[0]
            if i + 1 < len(hops):
                keys.append(("edge", h["id"], hops[i + 1]["id"]))
            if "jti" in h:
                keys.append(("statement", h["id"] if i else self.l.user[1]["iss"], h["jti"]))
        return keys

    def check_revoked(self, keys):
        for r in self.revoked:
            need((r["kind"], r.get("iss", ""), r["value"]) not in keys, "revoked")

    def subject(self, chain, s, first):
        self.peer(chain)
        self.l = Lineage(split_parts(s))
        need(self.l.id_token, "root.id-token-missing")
        need(self.l.user or not self.demand_user, "root.user-grant")
        named = self.l.named() or [self.id]
        need(len(named) <= self.max_actors, "actor.count")
        need(len(set(named)) == len(named), "actor.repeated")
        oldest = self.l.user or (self.l.grants[0] if self.l.grants else None)
        txn, who = (oldest[1]["txn"], oldest[1]["user"]) if oldest else ("", None)
        self.grants(txn, who)
        need(not oldest or named[-1] == self.id, "grant.delegate")
        if self.l.user:
            need(hash_of(self.l.id_token.raw) == self.l.user[1]["root"]["th"], "root.hash")
        claims = self.identity()
        if oldest:
            need((claims["iss"], claims["sub"]) == who, "root.subject")
        who = claims["iss"], claims["sub"]
        sid = claims.get("sid", hash_of(self.l.id_token.raw))
        self.age(claims.get("auth_time", claims["iat"]))
        hops = self.hops(who, "verified" if self.l.user else "broker")
        keys = self.revocation_keys(who, sid, txn, hops)
        self.check_revoked(keys)
        if first:
            need(not self.passed(claims["exp"]), "root.id-token-expired")
        out = {"user": {"format": "iss_sub", "iss": who[0], "sub": who[1]}, "sid": sid, "txn": txn, "hops": hops,
               "lowest_grade": lowest(hops), "expires": min(self.ends + self.cert_ends),
               "purpose": self.l.user[1]["purpose"] if self.l.user else "", "revocation_keys": written(keys),
               "bare": not self.l.user, "left": 0}
        if self.l.newest():
            part, c = self.l.newest()
            out |= {"authorization_details": c["cap"], "head": hash_of(part.raw), "left": c["left"]}
        return out


def lowest(hops):
    return "attested" if all(h["grade"] == "attested" for h in hops) else "asserted"


def written(keys):
    return sorted(" ".join(x for x in k if x) for k in keys)


def certs(entries):
    return [x509.load_der_x509_certificate(base64.b64decode(e)) for e in entries]


# --- 12 Statements beside the credential


def key_statement(raw, certifying, mesh):
    part, = split_parts(raw)
    part.read_header("deputy-token-key+jwt", None)
    c = take(part.claims(), {"iss": str, "jwk": dict, "kid": str, "nbf": int, "exp": int})
    take(c["jwk"], {"kty": str, "crv": str, "x": str, "y": str})
    part.verify(certifying, "key-statement")
    jwk_key(c["jwk"])
    need(c["iss"] == mesh and c["kid"] == thumbprint(c["jwk"]), "key-statement")
    times(c["nbf"], c["exp"])
    return c


def operator_request(raw, call, now):
    part, = split_parts(raw)
    h = part.read_header("deputy-operator+jwt", "jwk")
    c = take(part.claims(), {"iss": str, "aud": str, "act": str, "body_sha256": str, "iat": int, "exp": int, "jti": str})
    times(c["iat"], c["exp"]), hex_id(c["jti"])
    need(c["exp"] - c["iat"] <= 60, "operator-request")
    need(call["nonce"] and thumbprint(h["jwk"]) == call["nonce"], "operator-request")
    part.verify(jwk_key(h["jwk"]), "operator-request")
    need((c["iss"], c["aud"], c["act"], c["body_sha256"]) == (call["iss"], call["mesh"], call["act"], hash_of(call["body"])), "operator-request")
    need(c["iat"] <= now + SKEW and now < c["exp"] + SKEW, "operator-request")


# --- 14 Test vectors


class Report:
    def __init__(self):
        self.count, self.bad = 0, []

    def judge(self, name, vec, call, want=None):
        self.count += 1
        try:
            got = call()
        except Refused as e:
            if vec.get("class") != e.cls:
                self.bad.append(f"{name}: {e}, want {vec.get('class', 'valid')}")
            elif "hop" in vec and vec["hop"] != e.hop:
                self.bad.append(f"{name}: hop {e.hop}, want {vec['hop']}")
            return
        if "class" in vec:
            self.bad.append(f"{name}: accepted, want {vec['class']}")
        elif want is not None:
            want = dict(want, revocation_keys=sorted(want["revocation_keys"]))
            for k in sorted(set(got) | set(want)):
                if got.get(k) != want.get(k):
                    self.bad.append(f"{name}: {k} is {got.get(k)}, want {want.get(k)}")

    def equal(self, name, got, want):
        self.count += 1
        if got != want:
            self.bad.append(f"{name}: {got}, want {want}")


def main(folder):
    def load(name):
        with open(f"{folder}/{name}.json", encoding="utf-8") as f:
            return json.load(f)

    env, r = load("environment"), Report()
    for name in ("credentials-valid", "credentials-invalid"):
        for vec in load(name)["vectors"]:
            chain = certs(env["certificates"].get(vec["peer"], []))
            r.judge(f"{name}: {vec['name']}", vec,
                    lambda: Verifier(env, vec.get("settings")).credential(chain, vec["credential"]), vec.get("chain"))
    for vec in load("subjects")["vectors"]:
        e = dict(env, settings=dict(env["settings"], root_evidence="verified"))
        r.judge(f"subjects: {vec['name']}", vec, lambda: Verifier(e, vec.get("settings")).subject(
            certs(vec["peer"]), vec["subject"], vec.get("first_exchange", False)), vec.get("want"))
    for vec in load("narrowing")["vectors"]:
        strict = [details(StrictJSON(json.dumps(vec[k]).encode()).document()) for k in ("child", "parent")]
        r.judge(f"narrowing: {vec['name']}", vec, lambda: within(*strict))
    m = load("matching")
    named = {d["name"]: d["authorization_details"] for d in m["details"]}
    actions = {a["name"]: a["action"] for a in m["actions"]}
    for c in m["matrix"]:
        r.equal(f"matching: {c['details']}, {c['action']}", match(named[c["details"]], actions[c["action"]]), (c["in"], c.get("max_rows", 0)))
    s = load("statements")
    for vec in s["key_statements"]:
        r.equal(f"key statement: {vec['name']}", accepts(key_statement, vec["statement"], jwk_key(env["certifying_key"]), env["mesh"]), vec["valid"])
    for vec in s["operator_requests"]:
        r.equal(f"operator request: {vec['name']}", accepts(operator_request, vec["statement"], s["operator_call"], s["now"]), vec["valid"])
    for line in r.bad:
        print(line)
    print(f"{r.count} vectors, {len(r.bad)} judged differently")
    return 1 if r.bad or r.count == 0 else 0


def accepts(call, *args):
    try:
        call(*args)
        return True
    except Refused:
        return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
