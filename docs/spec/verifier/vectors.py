"""The test vectors of the credential (credential.md, section 14)."""

import json
import os

import capabilities
import certificates
import credential
import jose
import statements
import strictjson
from refusal import Refused


class Vectors:
    def __init__(self, folder):
        self.folder = folder
        self.environment = self.load("environment")
        e = self.environment
        self.certifying_key = jose.p256_jwk(e["certifying_key"])
        self.token_keys = [
            statements.read_key_statement(s, [self.certifying_key], e["mesh"]) for s in e["key_statements"]
        ]
        self.certificates = {
            name: [jose.unb64(c, "certificate") for c in chain] for name, chain in e["certificates"].items()
        }
        bundle = [jose.unb64(c, "certificate") for c in e["bundles"][e["trust_domain"]]]
        self.bundle = certificates.parse_chain(bundle, "bundle")
        p = e["identity_provider"]
        key = jose.ProviderKey(jose.p256_jwk(p["key"]), alg="ES256")
        self.providers = {p["issuer"]: credential.Provider([p["client_id"]], [key])}

    def load(self, name):
        with open(os.path.join(self.folder, name + ".json"), encoding="utf-8") as f:
            return json.load(f)

    def believes(self, settings, target=True):
        s = {**self.environment["settings"], **(settings or {})}
        return credential.Environment(
            trust_domain=self.environment["trust_domain"],
            mesh=self.environment["mesh"],
            bundle=self.bundle,
            now=s["now"],
            target=s["target"] if target else None,
            token_keys=self.token_keys,
            providers=self.providers,
            root_evidence=s["root_evidence"],
            require_user_grant=s.get("require_user_grant", False),
            max_actors=s["max_actors"],
            max_session=s["max_session_seconds"],
            delegations=[(d["delegator"], d["delegate"]) for d in s.get("delegations", [])],
            revoked={(r["kind"], r.get("iss", ""), r["value"]) for r in s.get("revoked", [])},
        )

    def peer(self, name_or_chain):
        if isinstance(name_or_chain, str):
            return self.certificates[name_or_chain] if name_or_chain else []
        return [jose.unb64(c, "certificate") for c in name_or_chain]

    def credential(self, v):
        """The outcome of a vector of credentials: {"class", "hop"} or {"chain"}."""
        return _outcome(
            lambda: outcome_of_chain(
                credential.verify(self.believes(v.get("settings")), self.peer(v["peer"]), v["credential"])
            )
        )

    def subject(self, v):
        return _outcome(
            lambda: outcome_of_subject(
                credential.verify_subject(
                    self.believes(v.get("settings"), target=False),
                    self.peer(v["peer"]),
                    v["subject"],
                    v.get("first_exchange", False),
                )
            )
        )

    def key_statement(self, raw):
        return _valid(lambda: statements.read_key_statement(raw, [self.certifying_key], self.environment["mesh"]))

    def operator_request(self, raw, call, now):
        call = {**call, "body": call["body"].encode()}
        return _valid(lambda: statements.read_operator_request(raw, call, now))

    def chain_statement(self, raw, call, now):
        return _valid(lambda: statements.read_chain_statement(raw, call, self.bundle, now))


def _outcome(act):
    try:
        return {"chain": act()}
    except Refused as e:
        return {"class": e.cls, "hop": e.hop, "detail": str(e)}


def _valid(act):
    try:
        act()
        return True
    except Refused:
        return False


def narrowing(v):
    """None, or the class of the refusal."""
    try:
        # Through the strict reader, as they would arrive.
        parent, child = (capabilities.read(strictjson.parse(json.dumps(v[n]).encode())) for n in ("parent", "child"))
        capabilities.narrow(child, parent)
    except Refused as e:
        return e.cls
    return None


def matching(v):
    """Whether an action lies within details, and its limit."""
    try:
        details = capabilities.read(strictjson.parse(json.dumps(v["authorization_details"]).encode()))
        got, limit = capabilities.match(details, v["action"])
    except Refused as e:
        return {"class": e.cls}
    return {"class": None if got else "action.outside", "max_rows": limit or 0}


def _hop(h):
    out = {"id": h.id, "grade": h.grade}
    if h.statement:
        out["jti"] = h.statement["jti"]
    return out


def outcome_of_chain(c):
    return {
        "user": c.user,
        "sid": c.sid,
        "txn": c.txn,
        "root_evidence": c.root_evidence,
        "hops": [_hop(h) for h in c.hops],
        "lowest_grade": c.lowest_grade,
        "expires": c.expires,
        "authorization_details": c.details,
        "purpose": c.purpose,
        "revocation_keys": sorted(" ".join(filter(None, k)) for k in c.revocation_keys),
    }


def outcome_of_subject(c):
    out = outcome_of_chain(c)
    del out["root_evidence"]
    out.update(bare=c.user_grant is None, left=c.left)
    if c.details is None:
        del out["authorization_details"]
    if c.head:
        out["head"] = c.head
    return out


def check(folder):
    """Yields (name of the vector, what is wrong or None) for every vector."""
    vectors = Vectors(folder)
    for file in ("credentials-valid", "credentials-invalid"):
        for v in vectors.load(file)["vectors"]:
            yield f"{file}: {v['name']}", _difference(v, vectors.credential(v), v.get("chain"))
    for v in vectors.load("subjects")["vectors"]:
        yield f"subjects: {v['name']}", _difference(v, vectors.subject(v), v.get("want"))
    for v in vectors.load("narrowing")["vectors"]:
        got = narrowing(v)
        yield f"narrowing: {v['name']}", None if got == v.get("class") else f"{got}, not {v.get('class')}"
    yield from _check_matching(vectors.load("matching"))
    s = vectors.load("statements")
    for v in s["key_statements"]:
        yield f"key statement: {v['name']}", _bool(vectors.key_statement(v["statement"]), v["valid"])
    for v in s["operator_requests"]:
        got = vectors.operator_request(v["statement"], s["operator_call"], s["now"])
        yield f"operator request: {v['name']}", _bool(got, v["valid"])
    for v in s["chain_statements"]:
        got = vectors.chain_statement(v["statement"], s["chain_call"], s["now"])
        yield f"chain statement: {v['name']}", _bool(got, v["valid"])


def _check_matching(m):
    details = {}
    for d in m["details"]:
        raw = json.dumps(d["authorization_details"]).encode()
        details[d["name"]] = capabilities.read(strictjson.parse(raw))
    actions = {a["name"]: a["action"] for a in m["actions"]}
    for row in m["matrix"]:
        got, limit = capabilities.match(details[row["details"]], actions[row["action"]])
        wrong = None
        if got != row["in"] or limit != row.get("max_rows"):
            wrong = f"in: {got}, max_rows: {limit}"
        yield f"matching: {row['action']} within {row['details']}", wrong


def _bool(got, want):
    return None if got == want else f"valid: {got}"


def _difference(v, got, want):
    if "class" in v:
        if got.get("class") != v["class"]:
            return f"{got.get('detail', 'accepted')}, not {v['class']}"
        if "hop" in v and got["hop"] != v["hop"]:
            return f"hop {got['hop']}, not {v['hop']}"
        return None
    if "chain" not in got:
        return f"refused: {got['detail']}"
    want = {**want, "revocation_keys": sorted(want["revocation_keys"])}
    wrong = [n for n in {**want, **got["chain"]} if got["chain"].get(n) != want.get(n)]
    return f"another outcome: {', '.join(wrong)}" if wrong else None
