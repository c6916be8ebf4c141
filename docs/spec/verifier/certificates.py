"""X.509: the path check and the grade extension (credential.md, sections 6 and 8.1)."""

from dataclasses import dataclass, field
from datetime import timezone

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtensionOID

import ids
import jose
from refusal import Refused, demand

GRADE_OID = "1.3.6.1.4.1.32473.1.1"
MAX_CERTIFICATES = 4
_UNDERSTOOD = {
    ExtensionOID.KEY_USAGE,
    ExtensionOID.BASIC_CONSTRAINTS,
    ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    ExtensionOID.EXTENDED_KEY_USAGE,
}
_GOOD_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)


def _seconds(certificate, name):
    t = getattr(certificate, name + "_utc", None)  # since cryptography 42
    if t is None:
        t = getattr(certificate, name).replace(tzinfo=timezone.utc)
    return int(t.timestamp())


class Certificate:
    """A parsed certificate with what the rules ask of it. Raises ValueError if it is none."""

    def __init__(self, der):
        self.der = der
        self.x509 = x509.load_der_x509_certificate(der)
        if self.x509.public_bytes(Encoding.DER) != der:
            raise ValueError("not DER")
        try:
            self.extensions = list(self.x509.extensions)
            self.key = self.x509.public_key()
        except (x509.DuplicateExtension, UnsupportedAlgorithm) as e:
            raise ValueError(str(e)) from None
        self.not_before, self.not_after = _seconds(self.x509, "not_valid_before"), _seconds(self.x509, "not_valid_after")
        self.x5t = jose.hash_of(der)

    def extension(self, oid):
        for e in self.extensions:
            if e.oid == oid:
                return e
        return None

    def usage(self):
        e = self.extension(ExtensionOID.KEY_USAGE)
        return e.value if e else None

    def is_ca(self):
        e = self.extension(ExtensionOID.BASIC_CONSTRAINTS)
        return bool(e and e.value.ca)

    def path_length(self):
        e = self.extension(ExtensionOID.BASIC_CONSTRAINTS)
        return e.value.path_length if e else None

    def uris(self):
        e = self.extension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME)
        return e.value.get_values_for_type(x509.UniformResourceIdentifier) if e else []

    def spiffe_id(self):
        """The SPIFFE ID of a leaf with exactly one URI SAN, or None."""
        uris = self.uris()
        return uris[0] if len(uris) == 1 and ids.spiffe_id(uris[0]) else None

    def signed_by(self, issuer):
        c = self.x509
        try:
            if c.issuer.public_bytes() != issuer.x509.subject.public_bytes():
                return False
            if isinstance(issuer.key, ed25519.Ed25519PublicKey):
                issuer.key.verify(c.signature, c.tbs_certificate_bytes)
                return True
            digest = c.signature_hash_algorithm
            if not isinstance(digest, _GOOD_HASHES):
                return False
            if isinstance(issuer.key, ec.EllipticCurvePublicKey):
                issuer.key.verify(c.signature, c.tbs_certificate_bytes, ec.ECDSA(digest))
            elif isinstance(issuer.key, rsa.RSAPublicKey):
                issuer.key.verify(c.signature, c.tbs_certificate_bytes, padding.PKCS1v15(), digest)
            else:
                return False
            return True
        except (InvalidSignature, UnsupportedAlgorithm, ValueError):
            return False


def parse_chain(ders, cls):
    try:
        return [Certificate(der) for der in ders]
    except ValueError as e:
        raise Refused(cls, f"not a certificate: {e}") from None


def check_path(chain, bundle, now, cls):
    """Returns the certificates of a path from chain[0] to one of the bundle, all valid now."""
    leaf = chain[0]
    demand(len(chain) <= MAX_CERTIFICATES, cls, "more than 4 certificates")
    usage = leaf.usage()
    demand(usage and usage.digital_signature, cls, "the key is not for signatures")
    demand(not usage.key_cert_sign and not usage.crl_sign and not leaf.is_ca(), cls, "the leaf is a CA")
    demand(jose.is_p256(leaf.key), cls, "the key is not ECDSA on P-256")
    path = _find_path([leaf], chain[1:], bundle, now)
    demand(path, cls, "no path to the bundle that is valid now")
    return path


def _usable(c, now, below):
    """Whether c may stand in a path; below is the number of intermediates under it, None for the leaf."""
    if not c.not_before <= now <= c.not_after:
        return False
    if any(e.critical and e.oid not in _UNDERSTOOD for e in c.extensions):
        return False
    if c.extension(ExtensionOID.NAME_CONSTRAINTS):
        return False  # nobody here evaluates them
    if below is None:
        return True
    usage = c.usage()
    if not c.is_ca() or (usage and not usage.key_cert_sign):
        return False
    return c.path_length() is None or below <= c.path_length()


def _find_path(path, intermediates, bundle, now):
    last, below = path[-1], len(path) - 1
    if not _usable(last, now, below - 1 if below else None):
        return None
    for anchor in bundle:
        if last.signed_by(anchor) and _usable(anchor, now, below):
            return path + [anchor]
    for c in intermediates:
        if c not in path and last.signed_by(c):
            found = _find_path(path + [c], intermediates, bundle, now)
            if found:
                return found
    return None


@dataclass
class Grade:
    grade: str
    evidence: dict = field(default_factory=dict)


def read_grade(certificate):
    """The grade of an SVID (section 6)."""
    found = [e for e in certificate.extensions if e.oid.dotted_string == GRADE_OID]
    if not found:
        return Grade("asserted")
    demand(len(found) == 1, "grade.extension", "repeated")
    value = found[0].value.value
    try:
        return _grade(value)
    except ValueError as e:
        raise Refused("grade.extension", str(e)) from None


def _grade(der):
    outer = _DER(der)
    body = _DER(outer.take(0x30))
    outer.end()
    if body.integer() != 1:
        raise ValueError("version")
    grade = {0: "asserted", 1: "attested"}.get(body.integer(0x0A))
    if grade is None:
        raise ValueError("grade")
    evidence = {}
    if body.more():
        e = _DER(body.take(0x30))
        evidence = {
            "kind": e.utf8(),
            "uid": e.integer(),
            "gid": e.integer(),
            "path": e.utf8(),
            "sha256": e.take(0x04),
            "cgroup": e.utf8(),
        }
        e.end()
        if not ids.is_name(evidence["kind"]):
            raise ValueError("kind")
        if not all(0 <= evidence[n] < 2**32 for n in ("uid", "gid")):
            raise ValueError("uid or gid")
        if not all(ids.is_text(evidence[n], 0, 1024) for n in ("path", "cgroup")):
            raise ValueError("path or cgroup")
        if len(evidence["sha256"]) not in (0, 32):
            raise ValueError("sha256")
    body.end()
    if grade == "attested" and not evidence:
        raise ValueError("attested without evidence")
    return Grade(grade, evidence)


class _DER:
    """Reads DER of single-byte tags, in its one encoding only."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def more(self):
        return self.at < len(self.data)

    def end(self):
        if self.more():
            raise ValueError("trailing bytes")

    def byte(self):
        if not self.more():
            raise ValueError("truncated")
        self.at += 1
        return self.data[self.at - 1]

    def take(self, tag):
        if self.byte() != tag:
            raise ValueError("another type")
        size = self.byte()
        if size >= 0x80:
            octets = [self.byte() for _ in range(size & 0x7F)]
            size = int.from_bytes(bytes(octets), "big")
            if not octets or octets[0] == 0 or size < 0x80:
                raise ValueError("not the shortest length")
        value = self.data[self.at : self.at + size]
        if len(value) != size:
            raise ValueError("truncated")
        self.at += size
        return value

    def integer(self, tag=0x02):
        value = self.take(tag)
        shortest = len(value) == 1 or (len(value) > 1 and value[0] * 2 + (value[1] >> 7) not in (0, 511))
        if not shortest:
            raise ValueError("not the shortest integer")
        return int.from_bytes(value, "big", signed=True)

    def utf8(self):
        return self.take(0x0C).decode("utf-8")
