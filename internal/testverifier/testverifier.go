// Package testverifier runs the second verifier, docs/spec/verifier, which was written from the specifications and knows
// nothing of our code, so that tests can hold both to the same judgement.
package testverifier

import (
	"bufio"
	"encoding/json"
	"io"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// Python is Debian's, which has python3-cryptography.
const Python = "/usr/bin/python3"

// Script is the second verifier's command.
func Script() string { return filepath.Join(root(), "docs/spec/verifier/verify.py") }

func root() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Dir(filepath.Dir(filepath.Dir(file)))
}

// Verifier is one process that judges many cases.
type Verifier struct {
	in  io.WriteCloser
	out *bufio.Reader
}

// Start starts the second verifier, which ends with the test. It believes what the vectors of the credential say.
func Start(t testing.TB) *Verifier {
	t.Helper()
	// -B: no compiled files in the tree.
	cmd := exec.CommandContext(t.Context(), Python, "-B", Script(), "batch", filepath.Join(root(), "actor/testdata/vectors"))
	var stderr strings.Builder
	cmd.Stderr = &stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("the second verifier doesn't start (it needs the Debian packages python3 and python3-cryptography): %v", err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		if err := cmd.Wait(); err != nil && t.Context().Err() == nil {
			t.Errorf("the second verifier: %v\n%s", err, stderr.String())
		}
	})
	return &Verifier{in, bufio.NewReaderSize(out, 1<<20)}
}

// Ask judges one case: see verify.py, batch.
func (v *Verifier) Ask(t testing.TB, question, answer any) {
	t.Helper()
	line, err := json.Marshal(question)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.in.Write(append(line, '\n')); err != nil {
		t.Fatalf("asking the second verifier: %v", err)
	}
	reply, err := v.out.ReadBytes('\n')
	if err != nil {
		t.Fatalf("the second verifier says nothing to %.200s: %v", line, err)
	}
	if err := json.Unmarshal(reply, answer); err != nil {
		t.Fatalf("the second verifier says %.200s: %v", reply, err)
	}
}

// LogVerdict is what it says of a log.
type LogVerdict struct {
	Status   int      `json:"status"`   // exit status of `deputy audit verify`, docs/spec/audit-log.md
	Findings []string `json:"findings"` // kinds
	Detail   string   `json:"detail"`
}

// LogOptions are those of the command.
type LogOptions struct {
	Pruned bool     `json:"pruned,omitempty"`
	Seen   []string `json:"seen,omitempty"` // files
}

// Log verifies the log in dir.
func (v *Verifier) Log(t testing.TB, dir, keys string, o LogOptions) LogVerdict {
	t.Helper()
	var out LogVerdict
	v.Ask(t, struct {
		Dir  string `json:"log"`
		Keys string `json:"keys"`
		LogOptions
	}{dir, keys, o}, &out)
	return out
}
