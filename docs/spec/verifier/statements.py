"""The statements: headers, claims and what is true of them alone (credential.md, sections 3 and 12)."""

from dataclasses import dataclass, field

import capabilities
import certificates
import ids
import jose
from refusal import Refused, demand
from strictjson import Number, array_of, integer, object_of, parse, string

USER_GRANT = "deputy-user-grant+jwt"
GRANT = "deputy-grant+jwt"
TOKEN = "at+jwt"
KEY_STATEMENT = "deputy-token-key+jwt"
OPERATOR = "deputy-operator+jwt"
CHAIN = "deputy-chain+jwt"
OURS = {USER_GRANT, GRANT, TOKEN, KEY_STATEMENT, OPERATOR, CHAIN}
KEY_MEMBERS = {USER_GRANT: "jwk", GRANT: "x5c", TOKEN: "kid", KEY_STATEMENT: None, OPERATOR: "jwk", CHAIN: "x5c"}

SKEW = 30
LAST_TIME = 2**37
MAX_TOKEN_LIFE = 300
MAX_OPERATOR_LIFE = 60
MAX_CHAIN_LIFE = 30


@dataclass
class Statement:
    """A statement that was read completely, but of which no signature was verified."""

    jws: jose.JWS
    kind: str
    claims: dict
    kid: str = None
    key: object = None  # of jwk, or of the leaf of x5c
    chain: list = field(default_factory=list)  # x5c
    alg: str = "ES256"

    @property
    def hash(self):
        return self.jws.hash

    def good_signature(self, key):
        return jose.good_signature(self.alg, key, self.jws.signed, self.jws.signature)

    def get(self, name):
        return self.claims.get(name)

    def __getitem__(self, name):
        return self.claims[name]


# Values


def _value(reader, good, cls="claim.value"):
    def read(value):
        v = reader(value)
        demand(good(v), cls, repr(v))
        return v

    return read


def _text(low, high=None):
    return _value(string, lambda v: ids.is_text(v, low, high))


def _is_hash(text):
    try:
        return len(jose.unb64url(text)) == 32
    except Refused:
        return False


_any = lambda value: value
_issuer = _value(string, ids.is_issuer_url)
_hash = _value(string, _is_hash)
_hex_id = _value(string, ids.is_hex_id)
_time = _value(integer, lambda v: 0 < v <= LAST_TIME)
_agent = _value(string, ids.is_agent, "actor.not-agent")
_sub_id = object_of({"format": _value(string, "iss_sub".__eq__), "iss": _issuer, "sub": _text(1, 255)})
_roles = _value(array_of(_text(1, 255)), lambda v: len(v) <= 64 and len(set(v)) == len(v))
_purpose = _text(0, 200)

_GRANT_COMMON = {
    "delegate": _agent,
    "mesh": _issuer,
    "sub_id": _sub_id,
    "txn": _hex_id,
    "cap": capabilities.read,
    "left": _value(integer, lambda v: 0 <= v <= 7),
    "purpose": _purpose,
    "iat": _time,
    "exp": _time,
    "jti": _hex_id,
}
_ROOT = object_of(
    {"type": _value(string, "id_token".__eq__), "iss": _issuer, "th": _hash, "sid": _text(1, 255)}
)


_CHAIN_ACTOR = object_of({"sub": _agent, "grade": _value(string, ("attested", "asserted").__contains__)})


def _is_proxy(text):
    parsed = ids.spiffe_id(text)
    return bool(parsed) and parsed[1][:2] == ["deputy", "proxy"] and len(parsed[1]) > 2


def _act(value):
    level = object_of(
        {"sub": _agent, "iss": string, "sub_profile": _value(string, "ai_agent".__eq__)}, {"act": _act}
    )
    return level(value)


_CLAIMS = {
    USER_GRANT: object_of({"iss": _issuer, "root": _ROOT, **_GRANT_COMMON}),
    GRANT: object_of({"iss": _agent, "prh": _hash, **_GRANT_COMMON}),
    TOKEN: object_of(
        {
            "iss": _issuer,
            "aud": _value(string, ids.is_target, "token.audience"),
            "sub": string,
            "sub_id": _sub_id,
            "sid": _text(1, 255),
            "auth_time": _time,
            "client_id": _agent,
            "act": _act,
            "cnf": object_of({"x5t#S256": _hash}),
            "authorization_details": capabilities.read,
            "roles": _roles,
            "purpose": _purpose,
            "txn": _hex_id,
            "iat": _time,
            "nbf": _time,
            "exp": _time,
            "jti": _hex_id,
        },
        {"acr": _text(1, 255), "head": _hash},
    ),
    KEY_STATEMENT: object_of({"iss": _issuer, "jwk": jose.p256_jwk, "kid": _hash, "nbf": _time, "exp": _time}),
    OPERATOR: object_of(
        {
            "iss": _issuer,
            "aud": _issuer,
            "act": _value(string, ids.is_name),
            "body_sha256": _hash,
            "iat": _time,
            "exp": _time,
            "jti": _hex_id,
        }
    ),
    CHAIN: object_of(
        {
            "iss": _value(string, _is_proxy),
            "aud": _value(string, ids.is_target),
            "sub_id": _sub_id,
            "txn": _hex_id,
            "actors": _value(array_of(_CHAIN_ACTOR), lambda v: 1 <= len(v) <= 8),
            "roles": _roles,
            "purpose": _purpose,
            "root_evidence": _value(string, ("verified", "broker").__contains__),
            "htm": _text(1, 32),
            "path": _value(string, capabilities.http_path),
            "record": _text(1, 128),
            "iat": _time,
            "exp": _time,
            "jti": _hex_id,
        }
    ),
}


def pairwise_sub(sub_id):
    return "u_" + jose.b64url(jose.sha256(f"{sub_id['iss']}\n{sub_id['sub']}".encode())[:16])


def _check_together(kind, c):
    """Rules about more than one claim."""
    if "iat" in c:
        demand(c["iat"] < c["exp"], "claim.value", "iat before exp")
    if kind == TOKEN:
        demand(c["nbf"] <= c["exp"], "claim.value", "nbf after exp")
        demand(c["sub"] == pairwise_sub(c["sub_id"]), "claim.value", "sub is not made from sub_id")
    if kind == KEY_STATEMENT:
        demand(c["nbf"] < c["exp"], "claim.value", "nbf before exp")
    if kind == OPERATOR:
        demand(c["exp"] - c["iat"] <= MAX_OPERATOR_LIFE, "claim.value", "lives longer than a minute")
    if kind == CHAIN:
        demand(c["exp"] - c["iat"] <= MAX_CHAIN_LIFE, "claim.value", "lives longer than half a minute")


# Headers

_x5c = array_of(string)
_header = object_of(
    {}, {"alg": string, "typ": string, "kid": string, "jwk": _any, "x5c": _x5c}, unknown="header.member"
)
_id_token_header = object_of({}, {"alg": string, "typ": string, "kid": string}, open=True)


def peek_typ(jws):
    """The typ of a header, or None; all else may be anything but bad JSON."""
    return object_of({}, {"typ": string}, open=True)(parse(jws.header)).get("typ")


def read(jws, kind):
    """Header, key, claims; in this order."""
    header = _header(parse(jws.header))
    demand(header.get("typ") == kind, "header.typ", str(header.get("typ")))
    demand(header.get("alg") == "ES256", "header.alg", str(header.get("alg")))
    wanted = KEY_MEMBERS[kind]
    for name in ("kid", "jwk", "x5c"):
        demand((name in header) == (name == wanted), "header.member", name)
    statement = Statement(jws, kind, None, kid=header.get("kid"))
    if wanted == "jwk":
        try:
            statement.key = jose.p256_jwk(header["jwk"])
        except Refused as e:
            raise Refused("header.member", e.detail) if e.cls == "json.unknown" else e
    if wanted == "x5c":
        statement.chain = _read_x5c(header["x5c"])
        statement.key = statement.chain[0].key
    statement.claims = _CLAIMS[kind](parse(jws.payload))
    _check_together(kind, statement.claims)
    return statement


def _read_x5c(entries):
    demand(1 <= len(entries) <= certificates.MAX_CERTIFICATES, "header.key", "1 to 4 certificates")
    chain = []
    for entry in entries:
        chain += certificates.parse_chain([jose.unb64(entry, "credential.base64")], "header.key")
    demand(jose.is_p256(chain[0].key), "header.key", "the leaf's key is not ECDSA on P-256")
    return chain


# ID tokens (section 3.5)

_open_object = object_of({}, open=True)
_id_token_header = object_of(
    {"alg": string}, {"typ": string, "kid": string, **{n: _any for n in ("jku", "x5u", "jwk", "crit")}}, open=True
)
_id_token_names = object_of(
    {}, {n: _any for n in ("iss", "sub", "aud", "exp", "iat", "auth_time", "nonce", "sid", "acr")}, open=True
)


def read_id_token(jws):
    """The form alone; claims are as they stand."""
    header, payload = (_open_object(parse(part)) for part in (jws.header, jws.payload))
    header, claims = _id_token_header(header), _id_token_names(payload)
    for name in ("jku", "x5u", "jwk", "crit"):
        demand(name not in header, "header.member", name)
    demand(header["alg"] in jose.ASYMMETRIC, "header.alg", header["alg"])
    return Statement(jws, str(header.get("typ", "JWT")), claims, kid=header.get("kid"), alg=header["alg"])


def _numeric_date(value):
    """RFC 7519 allows a fraction; it is cut off."""
    demand(isinstance(value, Number), "json.type", "not a number")
    demand(0 <= float(value) <= LAST_TIME, "claim.value", value)
    return int(float(value))


def _audience(value):
    return [string(value)] if not isinstance(value, list) else array_of(string)(value)


_id_token_claims = object_of(
    {"iss": _issuer, "sub": _text(1, 255), "aud": _audience, "exp": _numeric_date, "iat": _numeric_date},
    {"auth_time": _numeric_date, "nonce": string, "sid": string, "acr": string, "azp": string},
    open=True,
)


def id_token_claims(t):
    """What an ID token says, read strictly (step 7.5); an empty string is none."""
    try:
        claims = _id_token_claims(t.claims)
        demand(t.kind.lower() == "jwt", "header.typ", t.kind)
    except Refused as e:
        raise Refused("root.id-token", str(e)) from None
    return {n: v for n, v in claims.items() if v != ""}


def is_for(claims, clients):
    """Whether an ID token was issued to one of clients (OpenID Connect Core §3.1.3.7)."""
    client = claims.get("azp") or (claims["aud"][0] if len(claims["aud"]) == 1 else None)
    return client in claims["aud"] and client in clients


# Statements beside the credential (section 12)


@dataclass
class TokenKey:
    kid: str
    mesh: str
    key: object
    not_before: int
    expires: int

    def valid(self, now):
        return now >= self.not_before - SKEW and not has_passed(self.expires, now)


def read_key_statement(raw, certifying_keys, mesh):
    try:
        s = read(jose.split_jws(raw), KEY_STATEMENT)
        demand(any(s.good_signature(key) for key in certifying_keys), "key-statement", "the signature")
        demand(s["iss"] == mesh, "key-statement", "another mesh")
        demand(s["kid"] == jose.thumbprint(s["jwk"]), "key-statement", "kid is not the thumbprint")
    except Refused as e:
        raise Refused("key-statement", str(e)) from None
    return TokenKey(s["kid"], s["iss"], s["jwk"], s["nbf"], s["exp"])


def read_operator_request(raw, call, now):
    """call: iss and nonce of the caller's verified ID token, mesh, act and body (bytes) of the call."""
    try:
        s = read(jose.split_jws(raw), OPERATOR)
        demand(call["nonce"] and jose.thumbprint(s.key) == call["nonce"], "operator-request", "another key")
        demand(s.good_signature(s.key), "operator-request", "the signature")
        demand(s["iss"] == call["iss"], "operator-request", "another provider")
        demand(s["aud"] == call["mesh"], "operator-request", "another mesh")
        demand(s["act"] == call["act"], "operator-request", "another call")
        demand(s["body_sha256"] == jose.hash_of(call["body"]), "operator-request", "another body")
        demand(not in_future(s["iat"], now), "operator-request", "from the future")
        demand(not has_passed(s["exp"], now), "operator-request", "expired")
    except Refused as e:
        raise Refused("operator-request", str(e)) from None
    return s


def read_chain_statement(raw, call, bundle, now):
    """call: proxy and target (SPIFFE IDs), method and path of the request that a service got."""
    try:
        s = read(jose.split_jws(raw), CHAIN)
        signer = s.chain[0].spiffe_id()
        demand(signer and ids.trust_domain(signer) == ids.trust_domain(call["proxy"]), "chain-statement", "another trust domain")
        certificates.check_path(s.chain, bundle, now, "chain-statement")
        demand(s.good_signature(s.key), "chain-statement", "the signature")
        demand(signer == s["iss"] == call["proxy"], "chain-statement", "another proxy")
        demand(s["aud"] == call["target"], "chain-statement", "another service")
        demand((s["htm"], s["path"]) == (call["method"], call["path"]), "chain-statement", "another request")
        demand(not in_future(s["iat"], now), "chain-statement", "from the future")
        demand(not has_passed(s["exp"], now), "chain-statement", "expired")
    except Refused as e:
        raise Refused("chain-statement", str(e)) from None
    return s


def in_future(t, now):
    return t > now + SKEW


def has_passed(end, now):
    return now >= end + SKEW
