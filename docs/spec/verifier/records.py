"""The schema of records (audit-log.md, "Records")."""

import datetime
import hashlib
import re
from dataclasses import dataclass
from fractions import Fraction

import capabilities
import ids
import jose
import strictjson
from refusal import Refused, demand
from strictjson import array_of, boolean, integer, object_of, string

VERSION = 2
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
    t = datetime.datetime(1970, 1, 1) + datetime.timedelta(microseconds=int(seconds * 10**6))
    fraction = f".{t.microsecond:06d}" if t.microsecond else ""
    return t.strftime("%Y-%m-%dT%H:%M:%S") + fraction + "Z"


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


def _any(value):
    demand(value is not None, "json.type", "null")
    return value


_filled = _value(string, bool)
_natural = _value(integer, lambda v: v >= 0)
_uint32 = _value(integer, lambda v: 0 <= v < 2**32)
_id = _value(string, lambda v: bool(_UUID7.match(v)))
_digest = _value(string, lambda v: bool(_DIGEST.match(v)))
_source = _value(string, lambda v: bool(ids.spiffe_id(v) and ids.spiffe_id(v)[1]))
_agent = _value(string, ids.is_agent)
_strings = array_of(string)
_result = _one_of("accepted", "refused")

# Members: name, then its reader; a plus sign marks those that are always there.


def _members(text, plain, **readers):
    required, optional = {}, {}
    for word in text.split():
        name = word.lstrip("+")
        if word.startswith("+"):
            required[name] = readers.get(name, plain)
        else:
            optional[name] = readers.get(name, string)
    return object_of(required, optional)


def _event(text, **readers):
    """An event: its strings that are always there aren't empty."""
    return _members(text, _filled, **readers)


def _inner(text, **readers):
    return _members(text, string, **readers)


_counts = array_of(_inner("+rule column +values", values=integer))
_objects = array_of(_inner("+kind +name columns write", columns=_strings, write=boolean))
_pairs = array_of(_inner("+name value"))
_attested = array_of(_inner("+name +value"))
_statement = _inner("+scrubbed truncated +bytes hmac_sha256", truncated=boolean, bytes=integer)
_open = array_of(_inner("+id +seq forwarded", id=_id, seq=integer, forwarded=boolean))

# The chain

_user = object_of({"format": _one_of("iss_sub"), "iss": _value(string, ids.is_issuer_url),
                   "sub": _value(string, lambda v: ids.is_text(v, 1, 255))})
_hop_evidence = _inner("+kind +uid +gid path sha256 cgroup", uid=_uint32, gid=_uint32)
_hop_grant = _inner(
    "+iss +jti +delegate +purpose +cap +left +iat +exp narrowed",
    delegate=_agent,
    cap=capabilities.read,
    left=integer,
    iat=_time,
    exp=_time,
    narrowed=_strings,
)
_any_hop = _inner(
    "+kind +id +grade evidence key certificate grant",
    kind=_one_of("user", "agent"),
    grade=_one_of("attested", "asserted"),
    evidence=_hop_evidence,
    grant=_hop_grant,
)


def _hop(value):
    hop = _any_hop(value)
    demand(hop["kind"] == "user" or ids.is_agent(hop["id"]), "record", "a hop that is no agent")
    return hop


_token = _inner("+iss +jti +kid +iat +exp", iat=_time, exp=_time)
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
    authorization_details=capabilities.read,
    expires=_time,
    verification=_digest,
    presented=_digest,
)

EVENTS = {
    "sign_in": _event(
        "+result +iss sub sid auth_time acr amr login_key class reason client", result=_result, auth_time=_time, amr=_strings
    ),
    "session_opened": _event(
        "+root_type root_hash +iss +sub login_key +first_agent purpose roles cap +ends",
        root_type=_one_of("verified", "asserted"),
        roles=_strings,
        cap=_any,
        ends=_time,
    ),
    "session_ended": _event("+reason by"),
    "exchange": _event(
        "+result +presenter audience jti exp head cap roles error class reason",
        result=_result,
        cap=_any,
        exp=_time,
        roles=_strings,
    ),
    "spawn": _event(
        "+result agent parent +name purpose grade attested serial not_after class reason",
        result=_result,
        attested=_attested,
        not_after=_time,
    ),
    "agent_ended": _event("+agent +reason descendants", descendants=integer),
    "jwt_svid": _event(
        "+result sub aud jti kid exp attested class reason",
        result=_result,
        aud=_strings,
        exp=_time,
        attested=_attested,
    ),
    "connection_opened": _event("+target +protocol client tls account database upstream"),
    "connection_closed": _event("+reason commands us detail", commands=integer, us=integer),
    "chain": _chain,
    "decision": _event(
        "+effect +target +action objects statement read_only account policies policy_set policy_version"
        " policy_digest obligations class reason us",
        effect=_one_of("allow", "refuse"),
        objects=_objects,
        statement=_statement,
        read_only=boolean,
        policies=_strings,
        policy_version=integer,
        policy_digest=_digest,
        obligations=_pairs,
        us=integer,
    ),
    "forwarded": _event("bytes", bytes=integer),
    "masked": _event("+counts", counts=_value(_counts, bool)),
    "completed": _event(
        "+status command rows affected bytes_in bytes_out code limit masked us",
        status=_one_of("ok", "error", "cancelled", "cut", "not_sent"),
        rows=integer,
        affected=integer,
        bytes_in=integer,
        bytes_out=integer,
        masked=_counts,
        us=integer,
    ),
    "outcome_unknown": _event("+forwarded +reason", forwarded=boolean),
    "refused": _event("+class reason target peer client count since", count=integer, since=_time),
    "revoked": _event(
        "id +kind iss +value delegate by reason until revision sessions_ended",
        until=_time,
        revision=integer,
        sessions_ended=integer,
    ),
    "operator_call": _event(
        "+result +call iss sub roles object before after class reason client", result=_result, roles=_strings, before=_digest, after=_digest
    ),
    "policy_loaded": _event("+result set version digest key reason", result=_result, version=integer, digest=_digest),
    "evidence": _event("+kind +digest +data", digest=_digest, data=string),
    "heartbeat": _event("+interval_us +open", interval_us=integer, open=integer),
    "log_opened": _event(
        "+segment recovered torn_offset torn_bytes torn_digest +open_decisions program",
        segment=integer,
        recovered=boolean,
        torn_offset=integer,
        torn_bytes=integer,
        torn_digest=_digest,
        open_decisions=integer,
    ),
    "log_segment": _event("+segment +total open", segment=integer, total=integer, open=_open),
    "log_closed": _event("+reason"),
}

_record = object_of(
    {
        "seq": _natural,
        "v": _value(integer, VERSION.__eq__),
        "id": _id,
        "type": _value(string, EVENTS.__contains__),
        "time": _time,
        "source": _source,
        "event": _any,
    },
    {
        "dev": boolean,
        "txn": string,
        "session": string,
        "connection": string,
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
    event = EVENTS[r["type"]](r["event"])
    record = Record(
        r["seq"], r["id"], r["type"], parse_time(r["time"]), r.get("decision"), r.get("chain"),
        event, member_bytes["event"],
    )
    if r["type"] == "decision" and event["effect"] == "refuse":
        demand(event.get("class"), "record", "a refusal without a class")
    if r["type"] == "evidence":
        demand(event["data"], "record", "no data")
        record.data = jose.unb64url(event["data"])
        demand(digest_of(record.data) == event["digest"], "record", "the digest is not that of the data")
    return record


_TIMES = ("auth_time", "expires", "iat", "exp")


def comparable(value):
    """A chain in which times are instants and what has no value is absent; without narrowed, which is for people."""
    if isinstance(value, dict):
        out = {n: parse_time(v) if n in _TIMES else comparable(v) for n, v in value.items() if n != "narrowed"}
        return {n: v for n, v in out.items() if v not in ("", [], {})}
    return [comparable(v) for v in value] if isinstance(value, list) else plain(value)


def plain(value):
    """A JSON value in which numbers are integers."""
    if isinstance(value, dict):
        return {n: plain(v) for n, v in value.items()}
    if isinstance(value, list):
        return [plain(v) for v in value]
    if isinstance(value, strictjson.Number):
        return integer(value)
    return value
