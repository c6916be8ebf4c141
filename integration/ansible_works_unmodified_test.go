package integration_test

import (
	"os"
	"strings"
	"testing"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/testmesh"
)

// Debian's Ansible works through a run as it comes: its commands by ssh with a shared connection and a terminal, its modules by SFTP. Each command and each
// file is decided and on record.
func TestAnsibleWorksUnmodified(t *testing.T) {
	m, host := hostMesh(t)
	bob := m.Login(t, "bob")
	// What Ansible keeps: its files there and here. Where its connections are kept is a socket's path, so it is short.
	keep := `d=$(mktemp -d /tmp/an.XXXXXX) && export HOME="$d" ANSIBLE_LOCAL_TEMP="$d/l" ANSIBLE_SSH_CONTROL_PATH_DIR="$d/c" ANSIBLE_REMOTE_TMP=` + host.Files + `/tmp ANSIBLE_PYTHON_INTERPRETER=/usr/bin/python3 ANSIBLE_NOCOLOR=1; `
	end := `; e=$?; for c in "$d"/c/*; do ` + sshRun + `-q -o ControlPath="$c" -O exit web; done; rm -r "$d"; exit $e`
	there := host.Files + "/from-ansible"
	r := bob.Run(t, onHost, "sh", "-c", keep+`ansible all -i web, -m copy -a "content=hello dest=`+there+`" && ansible all -i web, -m command -a "id -un"`+end)
	if got, err := os.ReadFile(there); r.Code != 0 || err != nil || string(got) != "hello" || !strings.Contains(r.Stdout, "\n"+host.Account+"\n") {
		t.Fatalf("%v %q: %s", err, got, r)
	}
	commands, files := 0, 0
	for _, rec := range m.SettledRecords(t, "proxy") {
		d, ok := rec.Event.(*audit.Decision)
		if !ok || d.Effect != audit.Allow {
			continue
		}
		switch {
		case d.Action == "ssh:exec" && strings.HasPrefix(d.Statement.Scrubbed, "/bin/sh -c '"):
			commands++
		case d.Action == "ssh:sftp-write" && strings.HasSuffix(d.Objects[0].Name, "/AnsiballZ_copy.py"):
			files++
			if out := m.Outcome(t, rec.ID).Event.(*audit.Completed); out.Status != "ok" || out.BytesIn < 1000 {
				t.Errorf("the outcome of writing the module: %+v", out)
			}
		}
	}
	if commands < 6 || files != 1 {
		t.Errorf("on record: %d commands, %d modules", commands, files)
	}
	// Where its commands aren't permitted, it says why when it is asked for more words.
	alice := m.Login(t, "alice")
	r = alice.Run(t, onHost, "sh", "-c", keep+`ansible -vvv all -i web, -m ping`+end)
	if r.Code == 0 {
		t.Fatalf("%s", r)
	}
	if d, ok := m.Record(t, "proxy", testmesh.RecordIn(t, r.Stdout+r.Stderr)).Event.(*audit.Decision); !ok || d.Effect != audit.Refuse || d.Class != "policy" {
		t.Errorf("the record of the refusal: %+v", d)
	}
	m.Verify(t)
}
