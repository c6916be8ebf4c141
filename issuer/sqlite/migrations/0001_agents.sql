-- +goose Up
CREATE TABLE agents (
    instance   TEXT    NOT NULL PRIMARY KEY CHECK (length(instance) = 32),
    spiffe_id  TEXT    NOT NULL UNIQUE,
    ended      INTEGER NOT NULL DEFAULT 0 CHECK (ended IN (0, 1)),
    forgotten  INTEGER NOT NULL DEFAULT 0 CHECK (forgotten IN (0, 1)),
    registered INTEGER NOT NULL, -- nanoseconds since 1970
    isolate    INTEGER NOT NULL CHECK (isolate IN (0, 1)),
    claimed    INTEGER NOT NULL CHECK (claimed IN (0, 1)),
    uid        INTEGER NOT NULL,
    registrant INTEGER NOT NULL,
    launcher_cgroup TEXT NOT NULL,
    attached   INTEGER NOT NULL CHECK (attached IN (0, 1)),
    relayed    INTEGER NOT NULL CHECK (relayed IN (0, 1)),
    boot_id    TEXT    NOT NULL,
    pid        INTEGER NOT NULL,
    start      INTEGER NOT NULL,
    proc_uid   INTEGER NOT NULL,
    cgroup     TEXT    NOT NULL,
    grade      TEXT    NOT NULL,
    key        BLOB    NOT NULL
) STRICT;

CREATE INDEX agents_held ON agents (ended, forgotten) WHERE ended = 0 OR forgotten = 0;

-- AUTOINCREMENT: a revision is never given twice, even when rows were deleted.
CREATE TABLE ended_agents (
    revision  INTEGER PRIMARY KEY AUTOINCREMENT,
    spiffe_id TEXT    NOT NULL UNIQUE REFERENCES agents (spiffe_id),
    reason    TEXT    NOT NULL,
    ended_at  INTEGER NOT NULL
) STRICT;
