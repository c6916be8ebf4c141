"""Verifies again the credentials behind a log's records (audit-log.md, "Evidence" and "Verification")."""

from dataclasses import dataclass
from fractions import Fraction

from cryptography.hazmat.primitives.serialization import load_pem_public_key
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

import certificates
import checkpoints
import credential
import ids
import jose
import records
import statements
import strictjson
from refusal import Refused, demand
from strictjson import array_of, boolean, integer, object_of, string

_DEFAULT_ACTORS, _DEFAULT_SESSION = 5, 12 * 3600
_any = lambda value: value
_strings = array_of(string)


@dataclass
class Keys:
    """The operator's list of keys: all that a verifier believes."""

    mesh: str
    trust_domain: str
    logs: list
    certifying_keys: list
    authorities: set  # DER
    providers: dict  # issuer -> (audiences or None, keys or None)


def read_keys(raw):
    provider = object_of({"issuer": string}, {"audiences": _strings, "jwks": _any})
    document = object_of(
        {
            "version": integer,
            "mesh": string,
            "trust_domain": string,
            "logs": _strings,
            "certifying_keys": _strings,
            "authorities": _strings,
        },
        {"identity_providers": array_of(provider)},
    )(strictjson.parse(raw))
    demand(document["version"] == 1, "keys", "another version")
    demand(document["logs"], "keys", "no log")
    demand(len(set(document["logs"])) == len(document["logs"]), "keys", "a log key twice")
    certifying = [load_pem_public_key(pem.encode()) for pem in document["certifying_keys"]]
    demand(all(jose.is_p256(k) for k in certifying), "keys", "a certifying key that is not P-256")
    authorities = {x509.load_pem_x509_certificate(p.encode()).public_bytes(Encoding.DER) for p in document["authorities"]}
    providers = {}
    for p in document.get("identity_providers", []):
        providers[p["issuer"]] = (p.get("audiences"), jose.jwks(p["jwks"]) if "jwks" in p else None)
    return Keys(
        document["mesh"],
        document["trust_domain"],
        [checkpoints.parse_key(k) for k in document["logs"]],
        certifying,
        authorities,
        providers,
    )


_document = object_of(
    {
        "credential": string,
        "peer": _strings,
        "authorities": _strings,
        "key_statement": string,
        "verified_at": string,
        "trust_domain": string,
        "mesh": string,
        "target": string,
        "root_evidence": string,
        "require_user_grant": boolean,
        "max_actors": integer,
        "max_session_us": integer,
    },
    {
        "identity_keys": string,
        "audiences": _strings,
        "delegations": array_of(object_of({"delegator": string, "delegate": string})),
    },
)


class Store:
    """The evidence that stands in a log so far, by digest."""

    def __init__(self, keys):
        self.keys = keys
        self.found = {}  # digest -> {kind: data}
        self.chains = {}  # digest of a verification -> the chain that comes out
        self.weak = set()  # verifications that rest on sign-in keys out of the log

    def add(self, record):
        self.found.setdefault(record.event["digest"], {})[record.event["kind"]] = record.data

    def get(self, digest, kind):
        demand(kind in self.found.get(digest, {}), "credential", f"no evidence of the kind {kind} before it: {digest}")
        return self.found[digest][kind]

    def check_chain(self, event):
        """Whether the credential behind a chain bears it out; raises Refused. Returns whether there is one."""
        if "presented" in event:
            self.get(event["presented"], "subject")
        digest = event.get("verification")
        if digest is None:
            return False
        if digest not in self.chains:
            self.chains[digest] = self._verify(digest)
        wanted, got = self.chains[digest], records.comparable(event)
        if wanted != got:
            wrong = [n for n in {**wanted, **got} if wanted.get(n) != got.get(n)]
            raise Refused("credential", f"the credential says otherwise: {', '.join(wrong)}")
        return True

    def _verify(self, digest):
        d = _document(strictjson.parse(self.get(digest, "verification")))
        keys = self.keys
        text = self.get(d["credential"], "credential").decode("ascii", "replace")
        peer = [self.get(c, "certificate") for c in d["peer"]]
        authorities = [self.get(c, "certificate") for c in d["authorities"]]
        statement = self.get(d["key_statement"], "key_statement").decode("ascii", "replace")
        demand(set(authorities) <= keys.authorities, "credential", "an authority that is not on the list of keys")
        demand(d["mesh"] == keys.mesh, "credential", "another mesh")
        demand(d["trust_domain"] == keys.trust_domain, "credential", "another trust domain")
        demand(d["root_evidence"] in ("verified", "broker", ""), "credential", "root_evidence")
        demand(0 <= d["max_actors"] <= credential.HARD_MAX_ACTORS, "credential", "max_actors")
        demand(d["max_session_us"] >= 0, "credential", "max_session_us")
        target = ids.is_target(d["target"]) and ids.trust_domain(d["target"]) == d["trust_domain"]
        demand(target and ids.is_issuer_url(d["mesh"]), "credential", "target or mesh")
        for pair in d.get("delegations", []):
            demand(all(map(ids.is_pattern, pair.values())), "credential", "no path patterns")
        env = credential.Environment(
            trust_domain=d["trust_domain"],
            mesh=d["mesh"],
            bundle=certificates.parse_chain(authorities, "credential"),
            now=records.parse_time(d["verified_at"]),
            target=d["target"],
            token_keys=[statements.read_key_statement(statement, keys.certifying_keys, d["mesh"])],
            providers=self._providers(d),
            root_evidence=d["root_evidence"] or "verified",
            require_user_grant=d["require_user_grant"],
            max_actors=d["max_actors"] or _DEFAULT_ACTORS,
            max_session=Fraction(d["max_session_us"], 10**6) or _DEFAULT_SESSION,
            delegations=[(p["delegator"], p["delegate"]) for p in d.get("delegations", [])],
        )
        chain = credential.verify(env, peer, text)
        if chain.root_evidence == "verified" and self._from_log(chain.user["iss"]):
            self.weak.add(digest)
        return records.comparable(as_written(chain, d["mesh"], digest))

    def _from_log(self, issuer):
        return self.keys.providers.get(issuer, (None, None))[1] is None

    def _providers(self, d):
        """A verification without identity keys looked at no ID token."""
        if "identity_keys" not in d:
            return None
        kept = jose.jwks(strictjson.parse(self.get(d["identity_keys"], "identity_keys")))
        return {
            issuer: credential.Provider(
                audiences or d.get("audiences", []), kept if listed is None else listed
            )
            for issuer, (audiences, listed) in self.keys.providers.items()
        }


# The chain as "Chain" writes it


def _hop(hop, first):
    out = {"kind": "user" if first else "agent", "id": hop.id, "grade": hop.grade}
    if hop.evidence:
        out["evidence"] = {**hop.evidence, "sha256": hop.evidence["sha256"].hex()}
    key = hop.certificate.key if hop.certificate else hop.statement and hop.statement.key
    if key:
        out["key"] = jose.thumbprint(key)
    if hop.certificate:
        out["certificate"] = hop.certificate.x5t
    if hop.statement:
        s = hop.statement
        out["grant"] = {n: s[n] for n in ("iss", "jti", "delegate", "purpose", "cap", "left")}
        out["grant"].update(iat=records.format_time(s["iat"]), exp=records.format_time(s["exp"]))
    return out


def as_written(chain, mesh, verification):
    token = chain.token
    return {
        "txn": chain.txn,
        "user": chain.user,
        "sid": chain.sid,
        "auth_time": records.format_time(chain.auth_time),
        "acr": token.get("acr") or "",
        "roles": token["roles"],
        "purpose": chain.purpose,
        "root_evidence": chain.root_evidence,
        "mesh": mesh,
        "target": token["aud"],
        "hops": [_hop(h, i == 0) for i, h in enumerate(chain.hops)],
        "token": {
            **{n: token[n] for n in ("iss", "jti")},
            "kid": token.kid,
            "iat": records.format_time(token["iat"]),
            "exp": records.format_time(token["exp"]),
        },
        "authorization_details": chain.details,
        "expires": records.format_time(chain.expires),
        "verification": verification,
    }
