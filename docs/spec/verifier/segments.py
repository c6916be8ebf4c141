"""The files of a log: segments and their frames (audit-log.md, "Files")."""

import os
import re
import struct
from dataclasses import dataclass

import merkle

BLOCK = 4096
MIN_SEGMENT, MAX_SEGMENT = 64 << 10, 4 << 30
MAX_FRAME = 8 << 20
MAX_CHECKPOINT = 1024
MAX_RECORD = 1 << 20
_NAME = re.compile(r"([0-9]{16})\.segment\Z")


def _crc_table():
    table = []
    for n in range(256):
        for _ in range(8):
            n = (n >> 1) ^ (0x82F63B78 if n & 1 else 0)
        table.append(n)
    return table


_TABLE = _crc_table()


def crc32c(data):
    crc, table = 0xFFFFFFFF, _TABLE
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def is_zero(data):
    return data.count(0) == len(data)


def list_segments(folder):
    """The numbers of the segments in a folder, in order."""
    return sorted(int(m.group(1)) for m in map(_NAME.match, os.listdir(folder)) if m)


def read_segment(folder, number):
    with open(os.path.join(folder, f"{number:016d}.segment"), "rb") as f:
        return f.read()


@dataclass
class Header:
    number: int
    size: int
    records: int
    peaks: list
    checkpoint: bytes

    def tree(self):
        return merkle.Tree(self.records, self.peaks)


def read_header(data):
    """The header of a segment, or None."""
    block = data[:BLOCK]
    if len(block) < BLOCK or block[:8] != b"DPTYSEG1":
        return None
    if not _good_checksum(block):
        return None
    number, size, records, p, c = struct.unpack(">QQQII", block[8:40])
    end = 40 + 32 * p + c
    if p != bin(records).count("1") or c > MAX_CHECKPOINT or (c == 0) != (records == 0) or end > BLOCK - 4:
        return None
    if size % BLOCK or not MIN_SEGMENT <= size <= MAX_SEGMENT or not is_zero(block[end : BLOCK - 4]):
        return None
    peaks = [block[40 + 32 * i : 72 + 32 * i] for i in range(p)]
    return Header(number, size, records, peaks, block[end - c : end])


def is_blank(data):
    """Whether a segment was only being prepared: its header wasn't finished, and nothing stands behind it."""
    block = data[:BLOCK]
    finished = len(block) == BLOCK and not is_zero(block[:8]) and _good_checksum(block)
    return not finished and is_zero(data[BLOCK:])


def _good_checksum(block):
    return crc32c(block[: BLOCK - 4]) == struct.unpack(">I", block[BLOCK - 4 :])[0]


@dataclass
class Frame:
    first: int  # seq of the first record
    records: list
    checkpoint: bytes
    length: int  # with its zeros
    clean: bool  # what fills the last block is zero


def read_frame(data, at):
    """The frame at an offset, or None if there is none whole."""
    head = data[at : at + 40]
    if len(head) < 40 or head[:8] != b"DPTYFRM1" or head[32:36] != bytes(4):
        return None
    first, k, b, c, body_crc = struct.unpack(">QIIII", head[8:32])
    if struct.unpack(">I", head[36:])[0] != crc32c(head[:36]):
        return None
    end = at + 40 + b + c
    length = -(-(40 + b + c) // BLOCK) * BLOCK
    if k < 1 or not 1 <= c <= MAX_CHECKPOINT or length > MAX_FRAME or at + length > len(data):
        return None
    body = data[at + 40 : end]
    if crc32c(body) != body_crc:
        return None
    records = _split_records(body[:b], k)
    if records is None:
        return None
    return Frame(first, records, body[b:], length, is_zero(data[end : at + length]))


def _split_records(body, k):
    records, at = [], 0
    for _ in range(k):
        if at + 4 > len(body):
            return None
        (size,) = struct.unpack(">I", body[at : at + 4])
        at += 4
        if not 1 <= size <= MAX_RECORD or at + size > len(body):
            return None
        records.append(body[at : at + size])
        at += size
    return records if at == len(body) else None
