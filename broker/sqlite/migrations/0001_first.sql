-- +goose Up
-- Times are microseconds since 1970, UTC.
CREATE TABLE meta (
  one             INTEGER PRIMARY KEY CHECK (one = 1),
  revision        INTEGER NOT NULL,
  issuer_revision INTEGER NOT NULL
) STRICT;
INSERT INTO meta VALUES (1, 0, 0);

CREATE TABLE sessions (
  txn         TEXT PRIMARY KEY,
  sid         TEXT NOT NULL,
  root_hash   TEXT NOT NULL,
  iss         TEXT NOT NULL,
  sub         TEXT NOT NULL,
  login_key   TEXT NOT NULL,
  first_agent TEXT NOT NULL,
  cap         TEXT NOT NULL,
  purpose     TEXT NOT NULL,
  auth_time   INTEGER NOT NULL,
  acr         TEXT NOT NULL,
  opened_at   INTEGER NOT NULL,
  ends_at     INTEGER NOT NULL,
  ended_at    INTEGER
) STRICT, WITHOUT ROWID;

CREATE TABLE revocations (
  id         TEXT PRIMARY KEY,
  revision   INTEGER NOT NULL UNIQUE,
  kind       TEXT NOT NULL,
  iss        TEXT NOT NULL,
  value      TEXT NOT NULL,
  delegate   TEXT NOT NULL,
  issued_at  INTEGER NOT NULL,
  expires_at INTEGER NOT NULL,
  reason     TEXT NOT NULL,
  asked_by   TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE ended_agents (
  spiffe_id       TEXT PRIMARY KEY,
  revision        INTEGER NOT NULL UNIQUE,
  issuer_revision INTEGER NOT NULL,
  ended_at        INTEGER NOT NULL,
  reason          TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE policy (
  one     INTEGER PRIMARY KEY CHECK (one = 1),
  version INTEGER NOT NULL,
  signed  TEXT NOT NULL
) STRICT;

CREATE TABLE proofs (
  iss        TEXT NOT NULL,
  jti        TEXT NOT NULL,
  expires_at INTEGER NOT NULL,
  PRIMARY KEY (iss, jti)
) STRICT, WITHOUT ROWID;
