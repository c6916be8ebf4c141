"""Verifies a log: files, frames, tree, signatures, records and credentials (audit-log.md, "Verification")."""

from dataclasses import dataclass, field

import checkpoints
import evidence
import merkle
import records
import segments
from refusal import Refused

SKEW = 30
CANT_LOOK = (OSError, ValueError, Refused, checkpoints.BadCheckpoint)  # by which a verification ends without a report


@dataclass
class Finding:
    kind: str
    where: str
    what: str

    def __str__(self):
        return f"{self.kind} at {self.where}: {self.what}"


@dataclass
class Report:
    folder: str
    origin: str = None
    findings: list = field(default_factory=list)
    told: list = field(default_factory=list)
    torn: bool = False
    records: int = 0
    frames: int = 0
    credentials: int = 0
    checkpoint: bytes = None
    seen: int = 0  # checkpoints that were seen before and are of this log

    def exit_status(self):
        return 2 if self.findings else 3 if self.torn else 0


class _Stop(Exception):
    """The files can't be read further."""


class LogVerifier:
    def __init__(self, folder, keys, pruned=False, seen=()):
        self.folder, self.keys, self.pruned = folder, keys, pruned
        self.seen = seen
        self.report = Report(folder)
        self.tree = merkle.Tree()
        self.start = 0  # records before the first segment
        self.last = None  # the newest checkpoint
        self.ends = {}  # size -> root, at the end of each frame
        self.content = _Content(keys, self.find)

    def find(self, kind, where, what):
        self.report.findings.append(Finding(kind, where, what))

    def stop(self, kind, where, what):
        self.find(kind, where, what)
        raise _Stop

    def verify(self):
        numbers = segments.list_segments(self.folder)
        if not numbers:
            raise FileNotFoundError(f"{self.folder}: no segments")
        try:
            self._segments(numbers)
        except _Stop:
            pass
        self._check_seen()
        self.content.finish(self.report)
        self.report.checkpoint = self.last.raw if self.last else None
        self.report.records = self.tree.size
        self.report.credentials = len(self.content.store.chains)
        return self.report

    def _segments(self, numbers):
        for expected, number in enumerate(numbers, numbers[0]):
            if number != expected:
                self.stop("missing_segment", f"segment {expected}", "isn't there")
        if segments.is_blank(segments.read_segment(self.folder, numbers[-1])):
            numbers = numbers[:-1]
        for number in numbers:
            self._segment(number, number == numbers[0], number == numbers[-1])

    def _segment(self, number, first, last):
        data, where = segments.read_segment(self.folder, number), f"segment {number}"
        header = segments.read_header(data)
        if header is None:
            self.stop("segment_header", where, "no valid header")
        if header.number != number:
            self.stop("segment_header", where, f"says that it is {header.number}")
        if len(data) != header.size:
            self.stop("truncated", where, f"{len(data)} bytes, not {header.size}")
        if first:
            self._begin(header, where)
        elif (header.records, header.peaks) != (self.tree.size, self.tree.peaks):
            self.stop("segment_header", where, "doesn't continue the segment before")
        elif header.checkpoint != (self.last.raw if self.last else b""):
            self.stop("segment_header", where, "another checkpoint than at the end of the segment before")
        self.content.new_segment(first and header.records > 0)
        at = segments.BLOCK
        while at < len(data):
            frame = segments.read_frame(data, at)
            if frame is None:
                break
            self._frame(frame, f"{where}, offset {at}")
            at += frame.length
        self._rest(data, at, where, last)

    def _begin(self, header, where):
        if header.records == 0:
            if header.number != 0:
                self.stop("missing_segment", where, "isn't the first, but nothing stands before it")
            return
        if not self.pruned:
            self.find("starts_late", where, f"begins with record {header.records}")
        self.tree, self.start = header.tree(), header.records
        self.last = self._checkpoint(header.checkpoint, where)
        if self.last.size != header.records or self.last.root != self.tree.root():
            self.stop("segment_header", where, "the peaks aren't the checkpoint's")
        self.ends[self.last.size] = self.last.root

    def _checkpoint(self, raw, where):
        try:
            c = checkpoints.open_checkpoint(raw, self.keys.logs)
        except checkpoints.BadCheckpoint as e:
            self.stop("signature", where, str(e))
        if self.report.origin not in (None, c.origin):
            self.stop("signature", where, f"another origin: {c.origin}")
        self.report.origin = c.origin
        return c

    def _frame(self, frame, where):
        if not frame.clean:
            self.stop("frame", where, "what fills its last block isn't zero")
        if frame.first != self.tree.size:
            self.stop("tree", where, f"begins with {frame.first}, not {self.tree.size}")
        c = self._checkpoint(frame.checkpoint, where)
        first = self.tree.size
        for record in frame.records:
            self.tree.add(record)
        if c.size != self.tree.size or c.root != self.tree.root():
            self.stop("tree", where, "its checkpoint isn't that of its records")
        self.last = c
        self.ends[c.size] = c.root
        self.report.frames += 1
        for i, record in enumerate(frame.records):
            self.content.record(record, first + i)

    def _rest(self, data, at, where, last):
        """What stands behind the last good frame of a segment."""
        rest = data[at:]
        if segments.is_zero(rest):
            return
        where = f"{where}, offset {at}"
        if not last:
            self.stop("frame", where, "bytes behind the frames of a finished segment")
        length = len(rest.rstrip(b"\0"))
        if length > segments.MAX_FRAME:
            self.stop("frame", where, "more than a torn frame")
        for offset in range(at + segments.BLOCK, at + length, segments.BLOCK):
            if segments.read_frame(data, offset):
                self.stop("frame", where, f"damaged, but a whole frame follows at {offset}")
        self.report.torn = True
        self.report.told.append(f"a torn tail at {where}: {length} bytes")

    def _check_seen(self):
        for raw in self.seen:
            c = checkpoints.open_checkpoint(raw, self.keys.logs)
            if c.origin != self.report.origin or (self.pruned and c.size < self.start):
                continue
            self.report.seen += 1
            if self.ends.get(c.size) != c.root:
                what = f"{c.size} records were seen" if c.size > self.tree.size else "no frame ends with it"
                self.find("rolled_back", f"record {c.size}", what)


class _Content:
    """What the records say, one after the other."""

    def __init__(self, keys, find):
        self.find = find
        self.store = evidence.Store(keys)
        self.open = {}  # id of a decision -> seq
        self.blind = False  # decisions from before a pruned beginning may still be unknown
        self.chains = {}  # digest -> event, of this segment
        self.bare = 0
        self.interval = None  # of the heartbeats of this run
        self.newest = None
        self.silences = []
        self.starts = self.unknown = 0

    def new_segment(self, blind):
        self.chains = {}
        self.blind = self.blind or blind

    def record(self, raw, seq):
        where = f"record {seq}"
        try:
            r = records.read(raw)
        except Refused as e:
            self.find("record", where, str(e))
            return
        if r.seq != seq:
            self.find("record", where, f"says that it is {r.seq}")
        if r.type == "chain":
            self._chain(r, where)
        chain = None
        if r.chain is not None:
            chain = self.chains.get(r.chain)
            if chain is None:
                self.find("record", where, "its chain wasn't stated before it in its segment")
        if r.type == "evidence":
            self.store.add(r)
        if r.type == "decision" and r.event["effect"] == "allow":
            self._allowed(r, chain, where)
        if r.type in ("forwarded", "completed", "outcome_unknown"):
            self._outcome(r, where)
        if r.type == "log_segment":
            self._log_segment(r, where)
        self._silence(r, where)

    def _chain(self, r, where):
        digest = records.digest_of(r.event_bytes)
        self.chains[digest] = r.event
        try:
            if not self.store.check_chain(r.event):
                self.bare += 1
        except Refused as e:
            self.find("credential", where, str(e))

    def _allowed(self, r, chain, where):
        self.open[r.id] = r.seq
        if chain and "verification" in chain and r.time > records.parse_time(chain["expires"]) + SKEW:
            self.find("credential", where, "allowed after its chain had ended")

    def _outcome(self, r, where):
        self.unknown += r.type == "outcome_unknown"
        if r.decision not in self.open:
            if not (self.blind and r.decision):
                self.find("link", where, f"{r.type} without an open decision")
        elif r.type != "forwarded":
            del self.open[r.decision]

    def _log_segment(self, r, where):
        for entry in r.event.get("open", []):
            if self.blind:
                self.open[entry["id"]] = entry["seq"]
            elif self.open.get(entry["id"]) != entry["seq"]:
                self.find("link", where, f"lists {entry['id']}, which isn't open")
        if self.blind and len(self.open) >= r.event["total"]:
            self.blind = False

    def _silence(self, r, where):
        if r.type == "log_opened":
            self.interval, self.newest = None, None
            self.starts += bool(r.event.get("recovered"))
        elif self.newest is not None and self.interval is not None:
            if r.time - self.newest > 2 * self.interval + 1:
                self.silences.append(where)
        if r.type == "heartbeat":
            self.interval = r.event["interval_us"] / 10**6
        self.newest = r.time if self.newest is None else max(self.newest, r.time)

    def finish(self, report):
        report.told.append(f"{len(self.open)} decisions without an outcome, {self.starts} starts after a crash")
        if self.bare:
            report.told.append(f"{self.bare} chains without a kept credential")
        if self.store.weak:
            report.told.append(f"{len(self.store.weak)} credentials rest on sign-in keys that only the log holds")
        for where in self.silences:
            report.told.append(f"silence before {where}")
