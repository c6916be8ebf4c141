"""base64url, JWS, JWK and signatures (credential.md, sections 2 and 3.1)."""

import base64
import hashlib
import re
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from refusal import Refused, demand
from strictjson import Number, array_of, object_of, string

_HASHES = {"256": hashes.SHA256, "384": hashes.SHA384, "512": hashes.SHA512}
_CURVES = {"ES256": (ec.SECP256R1, 32), "ES384": (ec.SECP384R1, 48), "ES512": (ec.SECP521R1, 66)}
ASYMMETRIC = [f + n for f in ("RS", "PS", "ES") for n in _HASHES] + ["EdDSA", "Ed25519"]


def b64url(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64url(text, cls="credential.base64"):
    """Decodes base64url; each byte string has exactly one encoding."""
    demand(re.fullmatch(r"[A-Za-z0-9_-]*", text) and len(text) % 4 != 1, cls, "not base64url")
    data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    demand(b64url(data) == text, cls, "stray bits")
    return data


def unb64(text, cls):
    """Decodes padded standard base64, as strictly."""
    demand(re.fullmatch(r"[A-Za-z0-9+/]*={0,2}", text) and len(text) % 4 == 0, cls, "not base64")
    data = base64.b64decode(text)
    demand(base64.b64encode(data).decode() == text, cls, "stray bits")
    return data


def sha256(data):
    return hashlib.sha256(data).digest()


def hash_of(data):
    """The hash of a statement, and the x5t of a certificate."""
    return b64url(sha256(data))


@dataclass
class JWS:
    raw: str
    header: bytes
    payload: bytes
    signature: bytes

    @property
    def signed(self):
        return self.raw.rsplit(".", 1)[0].encode()

    @property
    def hash(self):
        return hash_of(self.raw.encode())


def split_jws(raw, cls_parts="credential.parts", cls_base64="credential.base64"):
    members = raw.split(".")
    demand(len(members) == 3 and all(members), cls_parts, "not three non-empty members")
    return JWS(raw, *(unb64url(m, cls_base64) for m in members))


def p256_jwk(value, cls="header.key"):
    """The key of a JWK of exactly the four members of a P-256 key."""
    members = {name: string for name in ("kty", "crv", "x", "y")}
    jwk = object_of(members)(value)
    demand(jwk["kty"] == "EC" and jwk["crv"] == "P-256", cls, "not a P-256 key")
    x, y = unb64url(jwk["x"], cls), unb64url(jwk["y"], cls)
    demand(len(x) == 32 and len(y) == 32, cls, "x and y have 32 bytes")
    return ec_point(x, y, ec.SECP256R1(), cls)


def ec_point(x, y, curve, cls):
    try:
        return ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), curve).public_key()
    except ValueError:
        raise Refused(cls, "not a point of the curve") from None


def is_p256(key):
    return isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name == "secp256r1"


def thumbprint(key):
    """RFC 7638, of a P-256 key."""
    n = key.public_numbers()
    x, y = (b64url(v.to_bytes(32, "big")) for v in (n.x, n.y))
    return hash_of(b'{"crv":"P-256","kty":"EC","x":"%s","y":"%s"}' % (x.encode(), y.encode()))


def good_signature(alg, key, signed, signature):
    """Whether signature is one of alg by key; key must be of the kind that alg is for."""
    try:
        return _good_signature(alg, key, signed, signature)
    except (InvalidSignature, ValueError, UnsupportedAlgorithm):
        return False


def _good_signature(alg, key, signed, signature):
    if alg in _CURVES:
        curve, size = _CURVES[alg]
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, curve) or len(signature) != 2 * size:
            return False
        r, s = int.from_bytes(signature[:size], "big"), int.from_bytes(signature[size:], "big")
        key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(_HASHES[alg[2:]]()))
        return True
    if alg in ("EdDSA", "Ed25519"):
        if not isinstance(key, ed25519.Ed25519PublicKey):
            return False
        key.verify(signature, signed)
        return True
    if alg not in ASYMMETRIC or not isinstance(key, rsa.RSAPublicKey):
        return False
    digest = _HASHES[alg[2:]]()
    pad = padding.PKCS1v15() if alg.startswith("RS") else padding.PSS(padding.MGF1(digest), digest.digest_size)
    key.verify(signature, signed, pad, digest)
    return True


@dataclass
class ProviderKey:
    """A key of an identity provider: kid and alg are None where its JWK doesn't say."""

    key: object
    kid: str = None
    alg: str = None


def jwks(document):
    """The keys of a parsed RFC 7517 key set. What can't sign ID tokens is passed over."""
    found = []
    for jwk in object_of({"keys": array_of(object_of({}, open=True))}, open=True)(document)["keys"]:
        if jwk.get("use", "sig") != "sig":
            continue
        key = _any_jwk(jwk)
        if key is not None:
            found.append(ProviderKey(key, jwk.get("kid"), jwk.get("alg")))
    return found


def _any_jwk(jwk):
    """The key, or None if it is of a type that isn't known."""

    def part(name):
        value = jwk.get(name)
        demand(isinstance(value, str) and not isinstance(value, Number), "jwk", name)
        return unb64url(value, "jwk")

    curves = {"P-256": ec.SECP256R1, "P-384": ec.SECP384R1, "P-521": ec.SECP521R1}
    try:
        if jwk.get("kty") == "EC" and jwk.get("crv") in curves:
            return ec_point(part("x"), part("y"), curves[jwk["crv"]](), "jwk")
        if jwk.get("kty") == "RSA":
            return rsa.RSAPublicNumbers(int.from_bytes(part("e"), "big"), int.from_bytes(part("n"), "big")).public_key()
        if jwk.get("kty") == "OKP" and jwk.get("crv") == "Ed25519":
            return ed25519.Ed25519PublicKey.from_public_bytes(part("x"))
    except ValueError as e:
        raise Refused("jwk", str(e)) from None
    return None
