"""The schema of records (audit-log.md, "Records")."""

import datetime
import hashlib
import re
from dataclasses import dataclass
from fractions import Fraction

import ids
import jose
import strictjson
from refusal import Refused, demand
from strictjson import array_of, boolean, integer, object_of, string

VERSION = 2
MAX_SCRUBBED = 64 << 10
_UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\Z")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
_TIME = re.compile(r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?Z\Z", re.ASCII)


def digest_of(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def parse_time(text):
    """Seconds since 1970, as a fraction."""
    match = _TIME.match(text)
    demand(match, "record", f"not a time: {text}")
    year, month, day, hour, minute, second = (int(g) for g in match.groups()[:6])
    try:
        whole = datetime.datetime(year, month, day, hour, minute, second, tzinfo=datetime.timezone.utc)
    except ValueError:
        raise Refused("record", f"not a time: {text}") from None
    epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
    seconds = (whole - epoch) // datetime.timedelta(seconds=1)
    fraction = match.group(7) or "0"
    return seconds + Fraction(int(fraction), 10 ** len(fraction))


def format_time(seconds):
    t = datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=seconds)
    return t.strftime("%Y-%m-%dT%H:%M:%SZ")


def _value(reader, good):
    def read(value):
        v = reader(value)
        demand(good(v), "record", repr(v))
        return v

    return read


def _one_of(*values):
    return _value(string, values.__contains__)


def _time(value):
    parse_time(string(value))
    return value


_any = lambda value: value
_filled = _value(string, bool)  # an optional string is absent when it is empty
_natural = _value(integer, lambda v: v >= 0)
_id = _value(string, lambda v: bool(_UUID7.match(v)))
_digest = _value(string, lambda v: bool(_DIGEST.match(v)))
_agent_or_role = _value(string, lambda v: bool(ids.spiffe_id(v)))
_strings = array_of(string)
_result = _one_of("accepted", "refused")

# The members of events: name, then its reader; a plus sign marks those that are always there.


def _event(text, **readers):
    required, optional = {}, {}
    for word in text.split():
        name = word.lstrip("+")
        if word.startswith("+"):
            required[name] = readers.get(name, string)
        else:
            optional[name] = readers.get(name, _filled)
    return object_of(required, optional)


_counts = array_of(_event("+rule column +values", values=_natural))
_objects = array_of(_event("+kind +name columns write", columns=_strings, write=boolean))
_pairs = array_of(_event("+name value", value=string))
_statement = _event(
    "+scrubbed truncated +bytes hmac_sha256",
    scrubbed=_value(string, lambda v: len(v.encode()) <= MAX_SCRUBBED),
    truncated=boolean,
    bytes=_natural,
)
_open = array_of(_event("+id +seq forwarded", id=_id, seq=_natural, forwarded=boolean))

# The chain

_user = _event("+format +iss +sub", format=_one_of("iss_sub"))
_hop_evidence = _event("+kind uid gid path sha256 cgroup", uid=_natural, gid=_natural)
_hop_grant = _event(
    "+iss +jti +delegate purpose cap left iat exp narrowed",
    cap=_any,
    left=_natural,
    iat=_time,
    exp=_time,
    narrowed=_strings,
)
_hop = _event(
    "+kind +id +grade evidence key certificate grant",
    kind=_one_of("user", "agent"),
    grade=_one_of("attested", "asserted"),
    evidence=_hop_evidence,
    grant=_hop_grant,
)
_token = _event("+iss +jti +kid +iat +exp", iat=_time, exp=_time)
_hops = _value(array_of(_hop), lambda v: bool(v) and v[0]["kind"] == "user")
_chain = _event(
    "+txn +user sid auth_time acr roles purpose +root_evidence mesh target +hops token authorization_details"
    " +expires verification presented",
    user=_user,
    auth_time=_time,
    roles=_strings,
    root_evidence=_one_of("verified", "broker"),
    hops=_hops,
    token=_token,
    authorization_details=_any,
    expires=_time,
    verification=_digest,
    presented=_digest,
)

EVENTS = {
    "sign_in": _event(
        "+result +iss sub sid auth_time acr amr login_key class reason client", result=_result, amr=_strings
    ),
    "session_opened": _event(
        "+root_type root_hash +iss +sub login_key +first_agent purpose roles cap +ends",
        root_type=_one_of("verified", "asserted"),
        roles=_strings,
        cap=_any,
    ),
    "session_ended": _event("+reason by"),
    "exchange": _event(
        "+result +presenter audience jti exp head cap roles error class reason",
        result=_result,
        cap=_any,
        roles=_strings,
    ),
    "spawn": _event(
        "+result agent parent +name purpose grade attested serial not_after class reason",
        result=_result,
        attested=_pairs,
    ),
    "agent_ended": _event("+agent +reason descendants", descendants=_natural),
    "connection_opened": _event("+target +protocol client tls account database upstream"),
    "connection_closed": _event("+reason commands us detail", commands=_natural, us=_natural),
    "chain": _chain,
    "decision": _event(
        "+effect +target +action objects statement read_only account policies policy_set policy_version"
        " policy_digest obligations class reason us",
        effect=_one_of("allow", "refuse"),
        objects=_objects,
        statement=_statement,
        read_only=boolean,
        policies=_strings,
        policy_version=_natural,
        obligations=_pairs,
        us=_natural,
    ),
    "forwarded": _event("bytes", bytes=_natural),
    "masked": _event("+counts", counts=_counts),
    "completed": _event(
        "+status command rows affected bytes_in bytes_out code limit masked us",
        status=_one_of("ok", "error", "cancelled", "cut", "not_sent"),
        rows=_natural,
        affected=_natural,
        bytes_in=_natural,
        bytes_out=_natural,
        masked=_counts,
        us=_natural,
    ),
    "outcome_unknown": _event("+forwarded +reason", forwarded=boolean),
    "refused": _event("+class reason target peer client count since", count=_natural),
    "revoked": _event(
        "id +kind iss +value delegate by reason until revision sessions_ended",
        revision=_natural,
        sessions_ended=_natural,
    ),
    "operator_call": _event(
        "+result +call iss sub roles object before after class reason client", result=_result, roles=_strings
    ),
    "policy_loaded": _event("+result set version digest key reason", result=_result, version=_natural),
    "evidence": _event("+kind +digest +data", digest=_digest),
    "heartbeat": _event("+interval_us +open", interval_us=_natural, open=_natural),
    "log_opened": _event(
        "+segment recovered torn_offset torn_bytes torn_digest +open_decisions program",
        segment=_natural,
        recovered=boolean,
        torn_offset=_natural,
        torn_bytes=_natural,
        open_decisions=_natural,
    ),
    "log_segment": _event("+segment +total open", segment=_natural, total=_natural, open=_open),
    "log_closed": _event("+reason"),
}

_record = object_of(
    {
        "seq": _natural,
        "v": _value(integer, VERSION.__eq__),
        "id": _id,
        "type": _value(string, EVENTS.__contains__),
        "time": _time,
        "source": _agent_or_role,
        "event": _any,
    },
    {
        "dev": _value(boolean, bool),
        "txn": _filled,
        "session": _filled,
        "connection": _filled,
        "decision": _id,
        "chain": _digest,
    },
)


@dataclass
class Record:
    seq: int
    id: str
    type: str
    time: Fraction
    decision: str
    chain: str  # digest, or None
    event: dict
    event_bytes: bytes
    data: bytes = b""  # of evidence


def read(raw):
    """A record from its exact bytes; raises Refused."""
    document, member_bytes = strictjson.parse_with_bytes(raw)
    r = _record(document)
    demand(next(iter(document)) == "seq", "record", "seq is not the first member")
    event = EVENTS[r["type"]](r["event"])
    record = Record(
        r["seq"], r["id"], r["type"], parse_time(r["time"]), r.get("decision"), r.get("chain"),
        event, member_bytes["event"],
    )
    if r["type"] == "evidence":
        record.data = jose.unb64url(event["data"])
        demand(digest_of(record.data) == event["digest"], "record", "the digest is not that of the data")
    return record


def plain(value):
    """A JSON value in which numbers are integers, to compare."""
    if isinstance(value, dict):
        return {n: plain(v) for n, v in value.items()}
    if isinstance(value, list):
        return [plain(v) for v in value]
    if isinstance(value, strictjson.Number):
        return integer(value)
    return value
