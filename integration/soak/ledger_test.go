package soak_test

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/deputymesh/deputy/audit"
)

// ledger holds what the agents say and what is at the target against what the proxy's log says.
type ledger struct {
	e       *era
	hashKey []byte
	log     *audit.Reader
	others  []*audit.Reader // of broker and issuer, for the records that agents are told of

	decisions map[string]*decision          // by the keyed hash of the exact text
	byID      map[audit.RecordID]*decision  // allowed ones without an outcome
	records   map[audit.RecordID]audit.Type // of refusals
	tasks     map[string]string             // by prefix of the agents' name: the task
	revoked   map[string]time.Time          // task: nothing is served from then on
	effects   map[string]time.Time
	wrote     map[string]attempt // writes that agents told of
	owed      int                // unknown outcomes that a start has announced
	kills     map[string][]time.Time

	mu    sync.Mutex
	found []string
}

// decision is what the log says about one statement.
type decision struct {
	id      audit.RecordID
	allow   bool
	at      time.Time
	task    string
	status  string // of its outcome
	unknown bool
}

func newLedger(e *era) *ledger {
	raw, err := os.ReadFile(filepath.Join(e.m.Dir, "proxy", "audit.key"))
	if err != nil {
		e.t.Fatal(err)
	}
	key, err := audit.ParseKey(string(raw))
	if err != nil {
		e.t.Fatal(err)
	}
	l := &ledger{e: e, decisions: map[string]*decision{}, byID: map[audit.RecordID]*decision{}, records: map[audit.RecordID]audit.Type{},
		tasks: map[string]string{}, revoked: map[string]time.Time{}, effects: map[string]time.Time{}, wrote: map[string]attempt{}, kills: map[string][]time.Time{}}
	if l.hashKey, err = hkdf.Key(sha256.New, []byte(key.Private()), nil, "deputy audit text hash v1", sha256.Size); err != nil {
		e.t.Fatal(err)
	}
	// One reader from the first record to the last, over every crash.
	l.log = audit.NewReader(os.DirFS(e.m.LogDir("proxy")))
	e.t.Cleanup(func() { _ = l.log.Close() })
	for _, role := range []string{"broker", "issuer"} {
		r := audit.NewReader(os.DirFS(e.m.LogDir(role)))
		e.t.Cleanup(func() { _ = r.Close() })
		l.others = append(l.others, r)
	}
	return l
}

func (l *ledger) violation(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.found) < 20 {
		l.found = append(l.found, fmt.Sprintf(format, args...))
	}
}

func (l *ledger) violations() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.found
}

func (l *ledger) killed(what string) { l.kills[what] = append(l.kills[what], time.Now()) }

// killedSince says whether one was killed, or began again, in a span of time.
func (l *ledger) killedBetween(what string, from, to time.Time) bool {
	for _, k := range l.kills[what] {
		if k.After(from) && k.Before(to) {
			return true
		}
	}
	return false
}

// textOf is the statement that an agent runs for a token, as agentprobe has it.
func textOf(kind, token string) string {
	switch kind {
	case "read":
		return "SELECT '" + token + "' AS token FROM orders LIMIT 1"
	case "masked":
		return "SELECT email FROM customers WHERE name <> '" + token + "' LIMIT 1"
	case "write", "extended", "transaction":
		return "INSERT INTO effects (token) VALUES ('" + token + "')"
	}
	return ""
}

func (l *ledger) decisionOn(kind, token string) *decision {
	m := hmac.New(sha256.New, l.hashKey)
	m.Write([]byte(textOf(kind, token)))
	return l.decisions[base64.RawURLEncoding.EncodeToString(m.Sum(nil))]
}

// balance compares, in this order: what agents were told and what is at the target, then what is on record.
func (l *ledger) balance() {
	heard := l.e.crew.take()
	effects := l.e.effects()
	l.read()
	l.readOthers()
	for token, times := range effects {
		l.effect(token, times)
	}
	for _, a := range heard {
		l.attempt(a)
	}
}

// effect demands a decision that allows it and came before.
func (l *ledger) effect(token string, times []time.Time) {
	l.e.p.effects++
	if _, again := l.effects[token]; again || len(times) > 1 {
		l.violation("%s took effect twice", token)
	}
	l.effects[token] = times[0]
	switch d := l.decisionOn("write", token); {
	case d == nil:
		l.violation("%s took effect at %s and nobody decided on it", token, times[0])
	case !d.allow:
		l.violation("%s took effect and was refused (record %s)", token, d.id)
	case d.at.Truncate(time.Microsecond).After(times[0]):
		l.violation("%s took effect at %s, before it was decided on at %s (record %s)", token, times[0], d.at, d.id)
	}
}

var recordID = regexp.MustCompile(`\(record: ([^)]*)\)`)

// attempt holds one agent's word against the record.
func (l *ledger) attempt(a attempt) {
	p := l.e.p
	switch a.result {
	case "ok":
		if a.kind == "connect" {
			return
		}
		p.served++
		d := l.decisionOn(a.kind, a.token)
		switch {
		case d == nil:
			l.violation("answered without a record: %s", a)
		case !d.allow:
			l.violation("answered though it was refused (record %s): %s", d.id, a)
		case !l.revoked[d.task].IsZero() && a.began.After(l.revoked[d.task]):
			l.violation("served after its task was revoked at %s: %s", l.revoked[d.task], a)
		}
		if strings.Contains("write extended transaction", a.kind) && l.effects[a.token].IsZero() {
			l.violation("an agent was told that it wrote, and nothing is at the target: %s", a)
		}
	case "refused":
		p.refused++
		p.messages[a.kind+": "+a.code+" "+plain(a.text)]++
		if strings.TrimSpace(a.text) == "" || len(a.code) != 5 {
			l.violation("an error that says nothing: %s", a)
		}
		if m := recordID.FindStringSubmatch(a.text); m != nil {
			if id := audit.RecordID(m[1]); m[1] == "none" {
				l.violation("the log took no record: %s", a)
			} else if l.records[id] == "" {
				l.violation("the record that an agent was told of isn't there: %s", a)
			}
		} else if a.kind == "drop" && strings.HasPrefix(a.text, "refused:") {
			l.violation("a refusal without a record: %s", a)
		}
	case "broken":
		p.messages[a.kind+": "+plain(a.text)]++
		// Only a proxy that was killed has no words. Those about a target that was killed, or about a revocation, may have come
		// together with the answer before: pgx has read them by then, and says what it wrote to.
		from := a.began.Add(-5 * time.Second)
		late := strings.HasPrefix(a.text, "write failed") && (l.killedBetween("target", from, a.ended) || strings.HasPrefix(a.token, "victim"))
		if !late && !l.killedBetween("proxy", from, a.ended) {
			l.violation("a connection broke without a word, and no proxy was killed: %s", a)
		}
	default:
		if strings.HasPrefix(a.text, "no answer") && l.e.stalls.during(a.began, a.ended) {
			p.messages["the machine stood still: "+a.text]++
			break
		}
		l.violation("%s", a)
	}
	if strings.Contains("write extended transaction", a.kind) {
		l.wrote[a.token] = a
	}
}

// close looks at what only the end can tell.
func (l *ledger) close() {
	for token, a := range l.wrote {
		d := l.decisionOn(a.kind, token)
		_, effect := l.effects[token]
		switch {
		case d == nil || !d.allow: // effect() looked
		case a.kind == "transaction": // decided by its COMMIT
		case d.status == "ok" && !effect:
			l.violation("completed ok (record %s), and nothing is at the target: %s", d.id, a)
		case d.status == "not_sent" && effect:
			l.violation("recorded as not sent (record %s), and it took effect: %s", d.id, a)
		case d.status == "" && !d.unknown:
			l.violation("no outcome (record %s): %s", d.id, a)
		}
	}
	if len(l.byID) > 0 {
		l.violation("%d decisions have no outcome at the end", len(l.byID))
	}
}

// read follows the proxy's log to where it is now: what was decided on by now stands before the first record of later.
func (l *ledger) read() {
	for now := time.Now(); ; {
		r, err := l.log.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			l.violation("reading the proxy's log: %v", err)
			return
		}
		l.record(r)
		if r.Time.After(now) {
			return
		}
	}
}

// readOthers remembers which records broker and issuer have.
func (l *ledger) readOthers() {
	for _, log := range l.others {
		for {
			r, err := log.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				l.violation("reading the log of another role: %v", err)
				break
			}
			l.records[r.ID] = r.Type
		}
	}
}

func (l *ledger) record(r *audit.Record) {
	switch r.Type {
	case audit.TypeOutcomeUnknown, audit.TypeChain: // and the chains that they name
	case audit.TypeLogSegment, audit.TypeLogOpened: // a segment was full, or this start was killed, too
	default:
		if l.owed > 0 {
			l.violation("record %s: %s, where %d unknown outcomes were announced", r.ID, r.Type, l.owed)
			l.owed = 0
		}
	}
	switch e := r.Event.(type) {
	case *audit.LogOpened:
		if e.OpenedCount != len(l.byID) {
			l.violation("record %s: %d decisions were open at the start, the log before it says %d", r.ID, e.OpenedCount, len(l.byID))
		}
		l.owed = e.OpenedCount
	case *audit.Decision:
		d := &decision{id: r.ID, allow: e.Effect == audit.Allow, at: r.Time, task: r.Txn}
		if d.allow {
			l.byID[r.ID] = d
			if at := l.revoked[r.Txn]; !at.IsZero() && r.Time.After(at) {
				l.violation("record %s: allowed at %s, its task was revoked at %s", r.ID, r.Time, at)
			}
		} else {
			l.records[r.ID] = r.Type
		}
		if e.Statement != nil && e.Statement.Hash != "" {
			l.decisions[e.Statement.Hash] = d
		}
	case *audit.Completed:
		if d := l.byID[r.Decision]; d != nil {
			d.status = e.Status
			delete(l.byID, r.Decision)
		}
	case *audit.OutcomeUnknown:
		l.owed = max(l.owed-1, 0)
		if d := l.byID[r.Decision]; d != nil {
			d.unknown = true
			delete(l.byID, r.Decision)
		} else {
			l.violation("record %s: an unknown outcome of what wasn't open", r.ID)
		}
	case *audit.Refused:
		l.records[r.ID] = r.Type
	}
}

// taskOf finds the task of agents by the tokens in their statements.
func (l *ledger) taskOf(prefix string) string {
	l.e.crew.mu.Lock()
	defer l.e.crew.mu.Unlock()
	for i := len(l.e.crew.recent) - 1; i >= 0; i-- {
		a := l.e.crew.recent[i]
		if a.result == "ok" && strings.HasPrefix(a.token, prefix) {
			if d := l.decisionOn(a.kind, a.token); d != nil {
				return d.task
			}
		}
	}
	return ""
}

func (l *ledger) revokedTask(txn string, at time.Time) { l.revoked[txn] = at }

var differs = regexp.MustCompile(`/tmp/\S+|[0-9a-f]{8}-[0-9a-f-]{27}|[0-9a-f]{32}|[0-9]+`)

// plain is a message without what differs between two of the same.
func plain(s string) string {
	s = differs.ReplaceAllString(strings.TrimSpace(s), "#")
	return s[:min(len(s), 220)]
}
