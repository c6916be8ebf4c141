"""Credential and subject, step by step (credential.md, sections 4, 7, 8, 9 and 11)."""

import re
from dataclasses import dataclass, field

import capabilities
import certificates
import ids
import jose
import statements
from refusal import Refused, demand
from statements import GRANT, OURS, TOKEN, USER_GRANT, has_passed, in_future

MAX_SIZE = 32768
MAX_PARTS = 10
HARD_MAX_ACTORS = 8


@dataclass
class Provider:
    """An identity provider: its clients, and its keys."""

    audiences: list
    keys: list


@dataclass
class Environment:
    """What a verifier believes (section 7), and when it looks."""

    trust_domain: str
    mesh: str
    bundle: list
    now: object  # seconds, maybe a fraction
    target: str = None
    token_keys: list = field(default_factory=list)
    providers: dict = None  # by issuer; None: a verifier without keys of providers
    root_evidence: str = "verified"
    require_user_grant: bool = False
    max_actors: int = 5
    max_session: int = 12 * 3600
    delegations: list = field(default_factory=list)  # pairs of path patterns
    revoked: set = field(default_factory=set)


@dataclass
class Hop:
    id: str
    grade: str
    statement: statements.Statement = None  # what it signed
    evidence: dict = field(default_factory=dict)
    certificate: certificates.Certificate = None


@dataclass
class Chain:
    """What a verified credential or subject says."""

    user: dict
    sid: str
    txn: str
    hops: list
    root_evidence: str
    expires: int
    details: list
    purpose: str
    revocation_keys: list
    token: statements.Statement = None
    user_grant: statements.Statement = None
    head: str = None
    left: int = 0
    auth_time: int = 0

    @property
    def lowest_grade(self):
        return "attested" if all(h.grade == "attested" for h in self.hops) else "asserted"


# Step 2: form


@dataclass
class Parts:
    token: statements.Statement = None
    grants: list = field(default_factory=list)  # oldest first
    user_grant: statements.Statement = None
    id_token: statements.Statement = None

    def chain_of_statements(self):
        """User grant and grants, oldest first."""
        return ([self.user_grant] if self.user_grant else []) + self.grants

    def newest(self):
        chain = self.chain_of_statements()
        return chain[-1] if chain else None

    def agents(self):
        """The agents that the grants name, first agent first."""
        if self.user_grant:
            first = [self.user_grant["delegate"]]
        else:
            first = [self.grants[0]["iss"]] if self.grants else []
        return first + [g["delegate"] for g in self.grants]


def _split(text):
    demand(1 <= len(text) <= MAX_SIZE, "credential.size", f"{len(text)} bytes")
    demand(re.fullmatch(r"[A-Za-z0-9._~-]*", text), "credential.alphabet")
    raw = text.split("~")
    demand(len(raw) <= MAX_PARTS, "credential.parts", "more than 10 parts")
    for part in raw:
        members = part.split(".")
        demand(len(members) == 3 and all(members), "credential.parts", "not three non-empty members")
    return [jose.split_jws(part) for part in raw]


def _at_hop(hop, act, *args):
    try:
        return act(*args)
    except Refused as e:
        e.hop = hop if e.hop is None else e.hop
        raise


def _read_rest(jws, parts):
    """The grants, the user grant and the ID token, told apart by typ; newest first."""
    typ = {id(j): statements.peek_typ(j) for j in jws}
    rest = list(jws)
    grants = []
    while rest and typ[id(rest[0])] == GRANT:
        grants.append(rest.pop(0))
    for i, j in enumerate(grants):
        parts.grants.insert(0, _at_hop(len(grants) - i, statements.read, j, GRANT))
    if rest and typ[id(rest[0])] == USER_GRANT:
        parts.user_grant = _at_hop(0, statements.read, rest.pop(0), USER_GRANT)
    for i, j in enumerate(rest):
        demand(typ[id(j)] not in OURS, "credential.order", f"{typ[id(j)]} stands too late")
        demand(i == len(rest) - 1, "header.typ", f"{typ[id(j)]} before the last part")
    if rest:
        if parts.token and not parts.user_grant:
            raise Refused("credential.order", "an ID token without the user grant")
        parts.id_token = statements.read_id_token(rest[0])
    return parts


def parse(text):
    jws = _split(text)
    parts = Parts(token=statements.read(jws[0], TOKEN))
    return _read_rest(jws[1:], parts)


def parse_subject(text):
    parts = _read_rest(_split(text), Parts())
    demand(parts.id_token, "root.id-token-missing")
    return parts


# Step 1


def _check_peer(env, ders):
    demand(ders, "peer.certificate", "no certificate")
    chain = certificates.parse_chain(ders, "peer.certificate")
    peer = chain[0].spiffe_id()
    demand(peer, "peer.certificate", "not exactly one URI SAN that is a SPIFFE ID")
    demand(ids.trust_domain(peer) == env.trust_domain, "peer.trust-domain", peer)
    path = certificates.check_path(chain, env.bundle, env.now, "peer.certificate")
    ids.agent(peer)
    return peer, path


# Step 3


def _check_token(env, token):
    keys = [k for k in env.token_keys if k.kid == token.kid and k.mesh == env.mesh and k.valid(env.now)]
    demand(keys, "token.key", token.kid)
    demand(any(token.good_signature(k.key) for k in keys), "token.signature")
    demand(token["iss"] == env.mesh, "token.issuer", token["iss"])
    demand(token["aud"] == env.target, "token.audience", token["aud"])
    demand(not in_future(token["nbf"], env.now) and not in_future(token["iat"], env.now), "token.not-yet")
    demand(not has_passed(token["exp"], env.now), "token.expired")
    demand(token["exp"] - token["iat"] <= statements.MAX_TOKEN_LIFE, "token.lifetime")


# Steps 4 and 5


def _check_presenter(token, peer, leaf):
    demand(token["act"]["sub"] == peer, "presenter.actor", token["act"]["sub"])
    demand(token["client_id"] == peer, "presenter.client", token["client_id"])
    demand(token["cnf"]["x5t#S256"] == leaf.x5t, "presenter.binding")


def _actors(token):
    """The levels of act, outermost first."""
    level, found = token["act"], []
    while level:
        found.append(level)
        level = level.get("act")
    return found


def _check_shape(env, parts):
    levels = _actors(parts.token)
    demand(len(levels) <= min(env.max_actors, HARD_MAX_ACTORS), "actor.count", str(len(levels)))
    seen = set()
    for level in levels:
        demand(ids.trust_domain(level["sub"]) == env.trust_domain, "actor.trust-domain", level["sub"])
        demand(level["iss"] == "spiffe://" + env.trust_domain, "actor.trust-domain", level["iss"])
        demand(level["sub"] not in seen, "actor.repeated", level["sub"])
        seen.add(level["sub"])
    if env.root_evidence == "verified" or env.require_user_grant:
        demand(parts.user_grant, "root.user-grant")
    actors = [level["sub"] for level in reversed(levels)]
    if parts.newest():
        demand(actors == parts.agents(), "actor.grants")
    else:
        demand(len(actors) == 1, "actor.grants")
    return actors


# Step 6


def _check_common(env, s, txn, sub_id):
    demand(not in_future(s["iat"], env.now), "grant.not-yet")
    demand(not has_passed(s["exp"], env.now), "grant.expired")
    demand(s["mesh"] == env.mesh, "grant.mesh", s["mesh"])
    demand(s["txn"] == txn, "grant.txn", s["txn"])
    demand(s["sub_id"] == sub_id, "grant.subject")


def _check_user_grant(env, s, txn, sub_id):
    demand(s["iss"] == s["root"]["iss"] == s["sub_id"]["iss"], "grant.issuer", s["iss"])
    demand(s.good_signature(s.key), "grant.signature")
    _check_common(env, s, txn, sub_id)
    demand(ids.trust_domain(s["delegate"]) == env.trust_domain, "grant.trust-domain", s["delegate"])
    demand(ids.depth(s["delegate"]) == 1, "grant.child", s["delegate"])


def _may_delegate(env, delegator, delegate):
    if ids.parent(delegate) == delegator:
        return True
    return any(ids.matches_pattern(a, delegator) and ids.matches_pattern(b, delegate) for a, b in env.delegations)


def _check_grant(env, g, before, prh, txn, sub_id):
    """prh is what the statement before hashes to, None where it isn't checked. Returns the path."""
    leaf = g.chain[0]
    signer = leaf.spiffe_id()
    demand(ids.trust_domain(g["iss"]) == env.trust_domain, "grant.trust-domain", g["iss"])
    demand(signer, "grant.certificate", "the leaf has not exactly one URI SAN that is a SPIFFE ID")
    demand(ids.trust_domain(signer) == env.trust_domain, "grant.trust-domain", signer)
    path = certificates.check_path(g.chain, env.bundle, env.now, "grant.certificate")
    demand(signer == g["iss"], "grant.issuer", str(signer))
    demand(g.good_signature(leaf.key), "grant.signature")
    _check_common(env, g, txn, sub_id)
    demand(g["exp"] <= leaf.not_after, "grant.outlives-svid")
    if prh is not None:
        demand(g["prh"] == prh, "grant.prh")
    if before:
        demand(g["iss"] == before["delegate"], "grant.delegate", g["iss"])
    demand(ids.trust_domain(g["delegate"]) == env.trust_domain, "grant.trust-domain", g["delegate"])
    demand(_may_delegate(env, g["iss"], g["delegate"]), "grant.child", g["delegate"])
    if before:
        demand(g["left"] < before["left"], "grant.left")
        demand(g["exp"] <= before["exp"], "grant.exp")
        capabilities.narrow(g["cap"], before["cap"], "grant.cap")
    return path


def _check_grants(env, parts, txn, sub_id, oldest_prh):
    """From the user grant to the newest. Returns the paths that were used."""
    if parts.user_grant:
        _at_hop(0, _check_user_grant, env, parts.user_grant, txn, sub_id)
    paths, before, prh = [], parts.user_grant, oldest_prh
    if before:
        prh = before.hash
    for i, g in enumerate(parts.grants):
        paths.append(_at_hop(i + 1, _check_grant, env, g, before, prh, txn, sub_id))
        before, prh = g, g.hash
    return paths


def _check_token_against_newest(parts, leaf):
    token, newest = parts.token, parts.newest()
    demand(token["exp"] <= leaf.not_after, "token.outlives", "the presenter's SVID")
    if newest:
        demand(token["exp"] <= newest["exp"], "token.outlives", "the newest grant")
        capabilities.narrow(token["authorization_details"], newest["cap"], "token.details")
    if parts.user_grant:
        demand(token["purpose"] == parts.user_grant["purpose"], "token.purpose")


# Step 7


def _check_age(env, auth_time):
    demand(not in_future(auth_time, env.now), "root.age", "the sign-in lies in the future")
    demand(not has_passed(auth_time + env.max_session, env.now), "root.age", "longer ago than a session lasts")


def _verify_id_token(env, t):
    """Step 7.5. Returns the claims."""
    claims = statements.id_token_claims(t)
    provider = (env.providers or {}).get(claims["iss"])
    demand(provider, "root.id-token", f"no provider {claims['iss']}")
    demand(statements.is_for(claims, provider.audiences), "root.id-token", "aud")
    for k in provider.keys:
        if k.kid is not None and t.kid is not None and k.kid != t.kid:
            continue
        if k.alg is not None and k.alg != t.alg:
            continue
        if t.good_signature(k.key):
            return claims
    raise Refused("root.id-token", "the signature")


def _time_of(claims):
    return claims.get("auth_time", claims["iat"])


def _check_id_token_root(parts, t, sub_id):
    """Step 7.6; t are the claims of the ID token."""
    demand((t["iss"], t["sub"]) == (sub_id["iss"], sub_id["sub"]), "root.subject")
    if parts.user_grant:
        demand(t.get("nonce") == jose.thumbprint(parts.user_grant.key), "root.nonce")
        root = parts.user_grant["root"]
        demand(root["sid"] == t.get("sid", root["th"]), "root.sid")


def _check_root(env, parts):
    token, t, grant = parts.token, parts.id_token, parts.user_grant
    _check_age(env, token["auth_time"])
    if grant:
        demand(token["sid"] == grant["root"]["sid"], "root.sid")
    if not t:
        demand(env.root_evidence != "verified", "root.id-token-missing")
        return "broker"
    demand(grant["root"]["th"] == t.hash, "root.hash")
    if env.providers is None and env.root_evidence != "verified":
        return "broker"
    claims = _verify_id_token(env, t)
    _check_id_token_root(parts, claims, token["sub_id"])
    demand(token["auth_time"] == _time_of(claims), "root.auth-time")
    demand(token.get("acr") == claims.get("acr"), "root.auth-time", "acr")
    return "verified"


# Steps 8 and 9


def _hops(parts, root_evidence, user, actors, leaf):
    grade = "attested" if root_evidence == "verified" else "asserted"
    hops = [Hop(f"{user['iss']}#{user['sub']}", grade, parts.user_grant)]
    for i, g in enumerate(parts.grants):
        read = _at_hop(i + 1, certificates.read_grade, g.chain[0])
        hops.append(Hop(g["iss"], read.grade, g, read.evidence, g.chain[0]))
    read = _at_hop(len(parts.grants) + 1, certificates.read_grade, leaf)
    hops.append(Hop(actors[-1], read.grade, None, read.evidence, leaf))
    return hops


def _revocation_keys(user, sid, txn, actors, parts, target):
    keys = [("sub_id", user["iss"], user["sub"]), ("sid", user["iss"], sid)]
    if txn:
        keys.append(("txn", "", txn))
    above = f"{user['iss']}#{user['sub']}"
    for a in actors:
        keys.append(("edge", above, a))
        keys.extend(("actor", "", each) for each in ids.lineage(a))
        above = a
    for s in [parts.token] + parts.chain_of_statements():
        if s:
            keys.append(("statement", s["iss"], s["jti"]))
    if target:
        keys.append(("target", "", target))
    return list(dict.fromkeys(keys))


def _check_revoked(env, keys):
    for key in keys:
        demand(key not in env.revoked, "revoked", " ".join(filter(None, key)))


def _end(env, parts, paths, auth_time):
    ends = [s["exp"] for s in [parts.token] + parts.chain_of_statements() if s]
    ends.append(auth_time + env.max_session)
    ends.extend(c.not_after for path in paths for c in path)
    return min(ends)


def verify(env, peer_ders, text):
    """Section 8. Returns the Chain or raises Refused."""
    peer, peer_path = _check_peer(env, peer_ders)
    leaf = peer_path[0]
    parts = parse(text)
    token = parts.token
    _check_token(env, token)
    _check_presenter(token, peer, leaf)
    actors = _check_shape(env, parts)
    head = parts.newest().hash if parts.newest() else None
    demand(token.get("head") == head, "grant.head")
    paths = [peer_path] + _check_grants(env, parts, token["txn"], token["sub_id"], None)
    _check_token_against_newest(parts, leaf)
    root_evidence = _check_root(env, parts)
    hops = _hops(parts, root_evidence, token["sub_id"], actors, leaf)
    keys = _revocation_keys(token["sub_id"], token["sid"], token["txn"], actors, parts, token["aud"])
    _check_revoked(env, keys)
    return Chain(
        user=token["sub_id"],
        sid=token["sid"],
        txn=token["txn"],
        hops=hops,
        root_evidence=root_evidence,
        expires=_end(env, parts, paths, token["auth_time"]),
        details=token["authorization_details"],
        purpose=token["purpose"],
        revocation_keys=keys,
        token=token,
        user_grant=parts.user_grant,
        head=head,
        auth_time=token["auth_time"],
    )


def verify_subject(env, peer_ders, text, first_exchange=False):
    """Section 9."""
    peer, peer_path = _check_peer(env, peer_ders)
    parts = parse_subject(text)
    t, oldest = parts.id_token, (parts.chain_of_statements() or [None])[0]
    if env.require_user_grant:
        demand(parts.user_grant, "root.user-grant")
    agents = parts.agents() or [peer]
    demand(len(agents) <= min(env.max_actors, HARD_MAX_ACTORS), "actor.count", str(len(agents)))
    demand(len(set(agents)) == len(agents), "actor.repeated")
    paths = [peer_path]
    user, txn, newest = None, "", parts.newest()
    if oldest:
        user, txn = oldest["sub_id"], oldest["txn"]
        paths += _check_grants(env, parts, txn, user, t.hash)
    demand(agents[-1] == peer, "grant.delegate", "the peer is not the last delegate")
    if parts.user_grant:
        demand(parts.user_grant["root"]["th"] == t.hash, "root.hash")
    claims = _verify_id_token(env, t)
    user = user or {"format": "iss_sub", "iss": claims["iss"], "sub": claims["sub"]}
    _check_id_token_root(parts, claims, user)
    auth_time = _time_of(claims)
    _check_age(env, auth_time)
    if first_exchange:
        demand(not has_passed(claims["exp"], env.now), "root.id-token-expired")
    hops = _hops(parts, "verified" if parts.user_grant else "broker", user, agents, peer_path[0])
    sid = parts.user_grant["root"]["sid"] if parts.user_grant else claims.get("sid", t.hash)
    keys = _revocation_keys(user, sid, txn, agents, parts, None)
    _check_revoked(env, keys)
    return Chain(
        user=user,
        sid=sid,
        txn=txn,
        hops=hops,
        root_evidence="verified" if parts.user_grant else "broker",
        expires=_end(env, parts, paths, auth_time),
        details=newest["cap"] if newest else None,
        purpose=parts.user_grant["purpose"] if parts.user_grant else "",
        revocation_keys=keys,
        user_grant=parts.user_grant,
        head=newest.hash if newest else None,
        left=newest["left"] if newest else 0,
        auth_time=auth_time,
    )
