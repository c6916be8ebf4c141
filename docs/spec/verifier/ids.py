"""Identifiers and texts (credential.md, section 1)."""

import re

from refusal import demand

_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}\Z")
_SEGMENT = re.compile(r"[A-Za-z0-9._-]+\Z")
_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}\Z")
_HEX_ID = re.compile(r"[0-9a-f]{32}\Z")
_FORBIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
# RFC 3986: scheme "://" host [":" port] path, without user information, query and fragment.
_PCHAR = r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})"
_ISSUER = re.compile(rf"https?://(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{{1,5}})?(?:/{_PCHAR}*)?\Z")


def spiffe_id(text):
    """(trust domain, path segments) of a SPIFFE ID, or None."""
    if not text.startswith("spiffe://") or len(text) > 2048:
        return None
    trust_domain, *segments = text[len("spiffe://") :].split("/")
    if not _TRUST_DOMAIN.match(trust_domain):
        return None
    if any(not _SEGMENT.match(s) or s in (".", "..") for s in segments):
        return None
    return trust_domain, segments


def trust_domain(text):
    parsed = spiffe_id(text)
    return parsed[0] if parsed else None


def is_name(text):
    return bool(_NAME.match(text))


def is_hex_id(text):
    return bool(_HEX_ID.match(text))


def is_agent(text):
    parsed = spiffe_id(text)
    if not parsed:
        return False
    segments = parsed[1]
    if len(segments) < 3 or len(segments) % 2 == 0 or segments[0] != "agent":
        return False
    return all(is_name(n) and is_hex_id(i) for n, i in zip(segments[1::2], segments[2::2]))


def is_target(text):
    parsed = spiffe_id(text)
    return bool(parsed) and len(parsed[1]) == 2 and parsed[1][0] == "target" and is_name(parsed[1][1])


def is_role(text):
    parsed = spiffe_id(text)
    return bool(parsed) and len(parsed[1]) >= 2 and parsed[1][0] == "deputy"


def depth(agent):
    return (len(spiffe_id(agent)[1]) - 1) // 2


def parent(agent):
    """The agent's ID without its last pair; None at depth 1."""
    return agent.rsplit("/", 2)[0] if depth(agent) > 1 else None


def lineage(agent):
    """The agent and each agent above it in its path."""
    while agent:
        yield agent
        agent = parent(agent)


def is_pattern(text):
    """A path pattern: an agent's path in which a whole segment may be a star."""
    root, *segments = text.split("/")[1:]
    if not text.startswith("/agent/") or not segments or len(segments) % 2:
        return False
    return all(s == "*" or (is_hex_id(s) if i % 2 else is_name(s)) for i, s in enumerate(segments))


def matches_pattern(pattern, agent):
    wanted, segments = pattern.split("/")[1:], spiffe_id(agent)[1]
    return len(wanted) == len(segments) and all(w in ("*", s) for w, s in zip(wanted, segments))


def is_issuer_url(text):
    return len(text) <= 512 and bool(_ISSUER.match(text))


def is_text(text, low=0, high=None):
    size = len(text.encode())
    return not _FORBIDDEN.search(text) and size >= low and (high is None or size <= high)


def agent(text):
    demand(is_agent(text), "actor.not-agent", text)
    return text
