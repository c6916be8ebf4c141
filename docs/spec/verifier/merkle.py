"""The Merkle tree of RFC 6962 over the records, kept as its peaks (audit-log.md, "Merkle tree and checkpoint")."""

import hashlib


def leaf_hash(record):
    return hashlib.sha256(b"\x00" + record).digest()


def node_hash(left, right):
    return hashlib.sha256(b"\x01" + left + right).digest()


def fold(peaks):
    """The root of the tree that is made of these complete subtrees, largest first."""
    if not peaks:
        return hashlib.sha256(b"").digest()
    root = peaks[-1]
    for peak in reversed(peaks[:-1]):
        root = node_hash(peak, root)
    return root


class Tree:
    def __init__(self, size=0, peaks=()):
        self.size, self.peaks = size, list(peaks)

    def add(self, record):
        h, size = leaf_hash(record), self.size
        while size & 1:
            h = node_hash(self.peaks.pop(), h)
            size >>= 1
        self.peaks.append(h)
        self.size += 1

    def root(self):
        return fold(self.peaks)

    def copy(self):
        return Tree(self.size, self.peaks)
