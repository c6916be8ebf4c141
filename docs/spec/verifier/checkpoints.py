"""C2SP checkpoints and signed notes, and the keys that sign them (audit-log.md, "Merkle tree and checkpoint")."""

import base64
import hashlib
import re
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

MAX_ORIGIN = 256
_ED25519 = 1
_BASE64 = re.compile(r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?\Z")


class BadCheckpoint(Exception):
    pass


def _unbase64(text):
    data = base64.b64decode(text) if _BASE64.match(text) else None
    if data is None or base64.b64encode(data).decode() != text:
        raise BadCheckpoint("not base64")
    return data


def is_name(name):
    """A name of a key: no spaces, no plus."""
    return bool(name) and len(name.encode()) <= MAX_ORIGIN and "+" not in name and not re.search(r"\s", name)


@dataclass(frozen=True)
class Key:
    name: str
    id: bytes
    public: bytes

    def good(self, message, signature):
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, message)
            return True
        except (InvalidSignature, ValueError):
            return False


def parse_key(text):
    """A verifier key, <name>+<hash>+<base64 of 0x01 and the Ed25519 key>."""
    name, _, rest = text.partition("+")
    hash_, _, encoded = rest.partition("+")
    key = _unbase64(encoded)
    if not is_name(name) or not re.fullmatch(r"[0-9a-f]{8}", hash_) or len(key) != 33 or key[0] != _ED25519:
        raise BadCheckpoint(f"not a verifier key: {text}")
    id_ = hashlib.sha256(name.encode() + b"\n" + key).digest()[:4]
    if id_.hex() != hash_:
        raise BadCheckpoint(f"the hash is not that of the key: {text}")
    return Key(name, id_, key[1:])


@dataclass
class Checkpoint:
    raw: bytes
    origin: str
    size: int
    root: bytes


def open_checkpoint(raw, keys):
    """The checkpoint in a signed note, if a listed key of its origin signed it."""
    try:
        note = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise BadCheckpoint("not UTF-8") from None
    if re.search("[\x00-\x09\x0b-\x1f]", note):
        raise BadCheckpoint("control characters")
    at = note.rfind("\n\n")
    if at < 0 or not note.endswith("\n"):
        raise BadCheckpoint("not a signed note")
    text, signatures = note[: at + 1], note[at + 2 :]
    lines = text.split("\n")
    if len(lines) != 4 or lines[3] != "":
        raise BadCheckpoint("not the three lines of a checkpoint")
    origin, size, root = lines[0], lines[1], _unbase64(lines[2])
    if not is_name(origin):
        raise BadCheckpoint("the origin is no name")
    if not re.fullmatch(r"0|[1-9][0-9]{0,19}", size) or int(size) >= 2**64:
        raise BadCheckpoint("the size is no number")
    if len(root) != 32:
        raise BadCheckpoint("the root is no hash")
    if not _signed(origin, text.encode(), signatures, keys):
        raise BadCheckpoint(f"no good signature by a listed key of {origin}")
    return Checkpoint(raw, origin, int(size), root)


def _signed(origin, message, signatures, keys):
    lines = signatures.split("\n")
    if lines.pop() != "" or not lines:
        raise BadCheckpoint("no signature lines")
    good = False
    for line in lines:
        fields = line.split(" ")
        if len(fields) != 3 or fields[0] != "\u2014" or not is_name(fields[1]):
            raise BadCheckpoint("a malformed signature line")
        data = _unbase64(fields[2])
        if len(data) < 5:
            raise BadCheckpoint("a malformed signature line")
        for key in keys:
            if key.name == fields[1] and key.id == data[:4]:
                if not key.good(message, data[4:]):
                    raise BadCheckpoint("a bad signature by a listed key")
                good = good or key.name == origin
    return good
