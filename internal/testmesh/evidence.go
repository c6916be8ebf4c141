package testmesh

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/deputymesh/deputy/audit"
)

// roles are those that have logs.
func (m *Mesh) roles() []string {
	names := []string{"issuer", "broker", "proxy"}
	if _, err := os.Stat(m.Config(secondProxy)); err == nil {
		names = append(names, secondProxy)
	}
	return names
}

// LogDir is the folder of a role's log.
func (m *Mesh) LogDir(role string) string { return filepath.Join(m.Dir, role, "audit") }

// KeysFile is the list of public keys that verification needs.
func (m *Mesh) KeysFile() string { return filepath.Join(m.Dir, "public", "audit-keys.json") }

// Records are the records of a role's log that are there now.
func (m *Mesh) Records(t testing.TB, role string) []*audit.Record {
	t.Helper()
	r := audit.NewReader(os.DirFS(m.LogDir(role)))
	defer r.Close()
	var out []*audit.Record
	for {
		rec, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatalf("reading the log of %s: %v", role, err)
		}
		out = append(out, rec)
	}
}

// SettledRecords are the records of a role's log once every allowed command has its outcome.
func (m *Mesh) SettledRecords(t testing.TB, role string) []*audit.Record {
	t.Helper()
	for limit := time.Now().Add(patience / 4); ; time.Sleep(10 * time.Millisecond) {
		records := m.Records(t, role)
		open := map[audit.RecordID]bool{}
		for _, r := range records {
			switch e := r.Event.(type) {
			case *audit.Decision:
				if e.Effect == audit.Allow {
					open[r.ID] = true
				}
			case *audit.Completed, *audit.OutcomeUnknown:
				delete(open, r.Decision)
			}
		}
		if len(open) == 0 {
			return records
		}
		if time.Now().After(limit) {
			t.Fatalf("in the log of %s %d decisions have no outcome: %v", role, len(open), open)
		}
	}
}

// AwaitRecord waits for a record of a role's log: outcomes come into the log a little after their answer.
func (m *Mesh) AwaitRecord(t testing.TB, role, what string, is func(*audit.Record) bool) *audit.Record {
	t.Helper()
	r := audit.NewReader(os.DirFS(m.LogDir(role)))
	defer r.Close()
	for limit := time.Now().Add(patience / 4); ; {
		rec, err := r.Next()
		switch {
		case err == nil:
			if is(rec) {
				return rec
			}
		case !errors.Is(err, io.EOF):
			t.Fatalf("reading the log of %s: %v", role, err)
		case time.Now().After(limit):
			t.Fatalf("no record in the log of %s: %s", role, what)
		default:
			time.Sleep(5 * time.Millisecond)
		}
	}
}

var recordInMessage = regexp.MustCompile(`\(record: ([0-9a-f-]{36})\)`)

// RecordIn is the id of the record that a message names.
func RecordIn(t testing.TB, message string) audit.RecordID {
	t.Helper()
	found := recordInMessage.FindStringSubmatch(message)
	if found == nil {
		t.Fatalf("no record is named in %q", message)
	}
	id, err := audit.ParseRecordID(found[1])
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// Record is the record of that id in a role's log.
func (m *Mesh) Record(t testing.TB, role string, id audit.RecordID) *audit.Record {
	t.Helper()
	return m.AwaitRecord(t, role, "record "+id.String(), func(r *audit.Record) bool { return r.ID == id })
}

// Outcome is how a decision of the proxy ended.
func (m *Mesh) Outcome(t testing.TB, decision audit.RecordID) *audit.Record {
	t.Helper()
	return m.AwaitRecord(t, "proxy", "the outcome of "+decision.String(), func(r *audit.Record) bool {
		return r.Decision == decision && (r.Type == audit.TypeCompleted || r.Type == audit.TypeOutcomeUnknown)
	})
}

// Show runs `deputy audit show` over the logs of all roles.
func (m *Mesh) Show(t testing.TB, what string) Result {
	t.Helper()
	args := []string{Deputy(t), "audit", "show"}
	for _, role := range m.roles() {
		args = append(args, "--log", m.LogDir(role))
	}
	return Exec(t, Command{Args: append(args, what)})
}

// Verify holds that `deputy audit verify` finds the logs of all roles whole, unchanged and borne out by
// their credentials.
func (m *Mesh) Verify(t testing.TB) {
	t.Helper()
	args := []string{Deputy(t), "audit", "verify", "--keys", m.KeysFile()}
	for _, role := range m.roles() {
		args = append(args, m.LogDir(role))
	}
	if r := Exec(t, Command{Args: args}); r.Code != 0 {
		t.Errorf("the logs don't hold: %s", r)
	}
}
