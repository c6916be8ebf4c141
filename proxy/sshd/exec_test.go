package sshd_test

import (
	"context"
	"os"
	"strings"
	"testing"

	"github.com/deputymesh/deputy/proxy"
)

var ops, reader = []string{"ops"}, []string{"reader"}

func TestACommandIsDecidedBeforeItStarts(t *testing.T) {
	w := newWorld(t, ops)
	r := w.ssh("", "web", "echo out; echo err >&2; exit 3")
	if r.code != 3 || r.out != "out\n" || r.err != "err\n" {
		t.Fatalf("%s", r)
	}
	e := w.ledger.await(t, "completed", "echo out")
	if e.out.Status != "error" || e.out.Code != "exit 3" || e.out.Bytes != 8 || e.cmd.Account != w.host.Account || e.cmd.Text != "echo out; echo err >&2; exit 3" {
		t.Errorf("the outcome: %+v of %+v", e.out, e.cmd)
	}
	var order []string
	w.ledger.mu.Lock()
	for _, e := range w.ledger.events {
		if e.cmd.Kind == "exec" {
			order = append(order, e.kind)
		}
	}
	w.ledger.mu.Unlock()
	if got := strings.Join(order, " "); got != "decided durable forwarded completed" {
		t.Errorf("the order: %s", got)
	}
}

func TestWhatIsNotDurableDoesNotStart(t *testing.T) {
	w := newWorld(t, ops)
	mark := w.host.Files + "/started"
	w.ledger.becomesDurable(func(_ context.Context, cmd proxy.Command) error {
		if cmd.Kind == "exec" {
			return &proxy.Refusal{Class: proxy.ClassEvidence, Reason: "this couldn't be recorded, so it isn't allowed"}
		}
		return nil
	})
	r := w.ssh("", "web", "touch "+mark)
	if r.code != 126 || !strings.Contains(r.err, "couldn't be recorded") || !strings.Contains(r.err, "record: none") {
		t.Errorf("%s", r)
	}
	if exists(mark) {
		t.Error("the command ran")
	}
}

func TestARefusedCommandNeverStartsAndNamesItsRecord(t *testing.T) {
	w := newWorld(t, reader)
	mark := w.host.Files + "/started"
	for name, text := range map[string]string{
		"another program":    "touch " + mark,
		"a second command":   "echo x; touch " + mark,
		"a substitution":     "echo $(touch " + mark + ")",
		"a second line":      "echo x\ntouch " + mark,
		"a redirection":      "echo x > " + mark,
		"an assignment":      "X=1 echo x",
		"a brace":            "echo {a,b}",
		"a path":             "/bin/echo x",
		"what a policy bars": "echo forbidden",
	} {
		t.Run(name, func(t *testing.T) {
			r := w.ssh("", "web", text)
			if r.code != 126 || r.out != "" || !strings.Contains(r.err, "deputy: ") || !strings.Contains(r.err, "(record: rec-refused)") {
				t.Errorf("%s", r)
			}
		})
	}
	if exists(mark) {
		t.Error("a refused command ran")
	}
	if r := w.ssh("", "web", "echo fine"); r.code != 0 || r.out != "fine\n" {
		t.Errorf("what is allowed: %s", r)
	}
	for _, text := range []string{"shell", "subsystem"} {
		args := []string{"web"}
		if text == "subsystem" {
			args = []string{"-s", "web", "hello"}
		}
		if r := w.ssh("", args...); r.code != 126 || !strings.Contains(r.err, "rec-refused") {
			t.Errorf("%s: %s", text, r)
		}
	}
}

func TestCommandsThatCanBeTakenForOthersAreRefused(t *testing.T) {
	w := newWorld(t, ops)
	c := w.client()
	for name, text := range map[string]string{"a NUL": "echo a\x00; id", "not UTF-8": "echo \xff", "empty": "", "too long": "echo " + strings.Repeat("a", 64<<10)} {
		t.Run(name, func(t *testing.T) {
			s, err := c.NewSession()
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			out, err := s.CombinedOutput(text)
			if err == nil || !strings.Contains(string(out), "rec-refused") {
				t.Errorf("%v %q", err, out)
			}
		})
	}
	if n := len(w.ledger.all("forwarded")); n != 0 {
		t.Errorf("%d commands left for the target", n)
	}
}

func TestObligationsThatCantBeMetAreRefusals(t *testing.T) {
	host := newWorld(t, []string{"limited"})
	if r := host.ssh("", "web", "id"); r.code != 126 || !strings.Contains(r.err, "neither columns nor rows") {
		t.Errorf("a limit of rows: %s", r)
	}
	w := worldOf(t, host.host, []string{"recorded"})
	if r := w.ssh("", "-s", "web", "hello"); r.code != 126 || !strings.Contains(r.err, "can't be recorded") {
		t.Errorf("a recorded subsystem: %s", r)
	}
	if r := w.ssh("", "web", "id -u"); r.code != 0 {
		t.Errorf("a recorded command: %s", r)
	}
}

func TestInputOutputAndTheirEndsPass(t *testing.T) {
	w := newWorld(t, ops)
	if r := w.ssh("some input", "web", "cat; echo end"); r.code != 0 || r.out != "some inputend\n" {
		t.Errorf("half-close: %s", r)
	}
	if r := w.ssh("", "-n", "web", "cat | wc -c"); strings.TrimSpace(r.out) != "0" {
		t.Errorf("no input: %s", r)
	}
	big := strings.Repeat("0123456789abcdef", 1<<18) // 4 MiB: more than all windows
	if r := w.ssh(big, "web", "cat"); r.code != 0 || r.out != big {
		t.Errorf("4 MiB there and back: exit %d, %d bytes, %s", r.code, len(r.out), r.err)
	}
	if r := w.ssh(big, "web", "head -c 3"); r.code != 0 || r.out != "012" {
		t.Errorf("a program that takes no more: %s", r)
	}
	if r := w.ssh("", "web", "kill -9 $$"); r.code != 255 {
		t.Errorf("a signal: %s", r)
	}
	if e := w.ledger.await(t, "completed", "kill -9"); e.out.Code != "SIGKILL" || e.out.Status != "error" {
		t.Errorf("a signal's outcome: %+v", e.out)
	}
	// What a program leaves behind holds its output open; its exit is told all the same, as OpenSSH's server does it.
	if r := w.ssh("", "web", "sleep 2 & echo left"); r.code != 0 || r.out != "left\n" {
		t.Errorf("a child that is left: %s", r)
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
