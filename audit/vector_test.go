package audit_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/testverifier"
)

var update = flag.Bool("update", false, "write the test vectors again")

const vectorFile = "testdata/vectors/logs.json"

// logVector is one log and what a verifier must say of it: docs/spec/audit-log.md, "Test vectors".
type logVector struct {
	Name     string          `json:"name"`
	Rule     string          `json:"rule"`
	Segments []vectorSegment `json:"segments"`
	Keys     json.RawMessage `json:"keys,omitempty"` // instead of the file's
	Pruned   bool            `json:"pruned,omitempty"`
	Seen     []string        `json:"seen,omitempty"` // checkpoints
	Status   int             `json:"status"`
	Finding  string          `json:"finding,omitempty"` // a kind that must be among the findings
}

type vectorSegment struct {
	Name  string       `json:"name"`
	Size  int          `json:"size"`
	Parts []vectorPart `json:"parts"` // all else is zero
}

type vectorPart struct {
	At   int    `json:"at"`
	Data string `json:"data"` // base64
}

type logVectors struct {
	Description string          `json:"description"`
	Keys        json.RawMessage `json:"keys"`
	Vectors     []logVector     `json:"vectors"`
}

// packed is a segment without its zeros.
func packed(name string, data []byte) vectorSegment {
	s := vectorSegment{Name: name, Size: len(data), Parts: []vectorPart{}}
	var run []byte
	start := 0
	flush := func() {
		if run = bytes.TrimRight(run, "\x00"); len(run) > 0 {
			s.Parts = append(s.Parts, vectorPart{start, base64.StdEncoding.EncodeToString(run)})
		}
		run = nil
	}
	for at := 0; at < len(data); at += 4096 {
		block := data[at:min(at+4096, len(data))]
		if len(bytes.Trim(block, "\x00")) == 0 {
			flush()
			continue
		}
		if run == nil {
			start = at
		}
		run = append(run, block...)
		if block[len(block)-1] == 0 {
			flush()
		}
	}
	flush()
	return s
}

func (v logVector) files(t testing.TB) fstest.MapFS {
	t.Helper()
	m := fstest.MapFS{}
	for _, s := range v.Segments {
		data := make([]byte, s.Size)
		for _, p := range s.Parts {
			b, err := base64.StdEncoding.DecodeString(p.Data)
			if err != nil {
				t.Fatal(err)
			}
			copy(data[p.At:], b)
		}
		m[s.Name] = &fstest.MapFile{Data: data, Mode: 0o600}
	}
	return m
}

func makeLogVectors(t testing.TB) logVectors {
	t.Helper()
	_, line := bookKey(bookOrigin, "log key")
	w := newCredentialWorld(t)
	marshal := func(k *audit.Keys) json.RawMessage {
		raw, err := json.Marshal(k)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	out := logVectors{
		Description: "Audit logs and what a verifier says of them, docs/spec/audit-log.md. Credentials are those of the vectors of actor/.",
		Keys:        marshal(w.keys(line)),
	}
	for _, c := range logCases(t) {
		v := logVector{Name: c.name, Rule: c.rule, Pruned: c.pruned, Seen: c.seen, Status: c.status, Finding: string(c.finding)}
		if c.keys != nil {
			k := w.keys(line)
			c.keys(k)
			v.Keys = marshal(k)
		}
		var names []string
		for name := range c.segments {
			names = append(names, name)
		}
		slices.Sort(names)
		for _, name := range names {
			v.Segments = append(v.Segments, packed(name, c.segments[name]))
		}
		out.Vectors = append(out.Vectors, v)
	}
	return out
}

// status is the exit status of `deputy audit verify`.
func statusOf(report *audit.Report, err error) int {
	switch {
	case err != nil:
		return 1
	case report.Err() != nil:
		return 2
	case report.Torn != nil:
		return 3
	}
	return 0
}

func TestEveryLogVectorIsJudgedAsItSays(t *testing.T) {
	var file logVectors
	readJSON(t, vectorFile, &file)
	for _, v := range file.Vectors {
		t.Run(v.Name, func(t *testing.T) {
			raw := file.Keys
			if v.Keys != nil {
				raw = v.Keys
			}
			keys, err := audit.ParseKeys(raw)
			var report *audit.Report
			if err == nil {
				opts := audit.VerifyOptions{Pruned: v.Pruned}
				for _, s := range v.Seen {
					opts.Seen = append(opts.Seen, []byte(s))
				}
				report, err = audit.Verify(v.files(t), keys, opts)
			}
			if got := statusOf(report, err); got != v.Status {
				t.Fatalf("status %d, want %d: %v %+v", got, v.Status, err, report)
			}
			if v.Finding != "" && !slices.ContainsFunc(report.Problems, func(p audit.Problem) bool { return string(p.Kind) == v.Finding }) {
				t.Errorf("no finding of the kind %s: %v", v.Finding, report.Problems)
			}
			if v.Status == 0 && v.Rule == ruleChains && report.Credentials.Verified == 0 {
				t.Error("no credential was verified again, so the vector asks too little")
			}
		})
	}
}

// TestASecondVerifierJudgesTheLogsTheSame runs docs/spec/verifier, which knows nothing of this package.
func TestASecondVerifierJudgesTheLogsTheSame(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), testverifier.Python, "-B", testverifier.Script(), "logs", vectorFile).CombinedOutput()
	if err != nil {
		t.Fatalf("%v (it needs the Debian packages python3 and python3-cryptography)\n%s", err, out)
	}
	t.Logf("%s", out)
}

func TestLogVectorsAreUpToDate(t *testing.T) {
	raw, err := json.MarshalIndent(makeLogVectors(t), "", " ")
	if err != nil {
		t.Fatal(err)
	}
	raw = append(raw, '\n')
	if *update {
		if err := os.MkdirAll(filepath.Dir(vectorFile), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(vectorFile, raw, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(vectorFile)
	if err != nil || !bytes.Equal(have, raw) {
		t.Errorf("%s differs from what makes it (%v); run make vectors: %.400s", vectorFile, err, cmp.Diff(string(have), string(raw)))
	}
}
