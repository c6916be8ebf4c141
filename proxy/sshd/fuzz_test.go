package sshd_test

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/proxy/sshd"
)

// FuzzPreface: what is taken is exactly one frame of the right name and length.
func FuzzPreface(f *testing.F) {
	for _, s := range []string{"", preface, preface + "\x00\x00\x00\x03abc", preface + "\x00\x00\x00\x00", preface + "\xff\xff\xff\xffabc", "SSH-2.0-x\r\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		credential, err := sshd.ReadPreface(r)
		if err != nil {
			return
		}
		frame := binary.BigEndian.AppendUint32([]byte(preface), uint32(len(credential)))
		if len(credential) == 0 || len(credential) > actor.MaxSize || !bytes.HasPrefix(b, append(frame, credential...)) || r.Len() != len(b)-len(frame)-len(credential) {
			t.Errorf("%q of %q", credential, b)
		}
	})
}

// FuzzDestination: where a forwarding leads to has one spelling, which is asked for.
func FuzzDestination(f *testing.F) {
	f.Add("db.example.org", uint32(5432))
	f.Add("::1", uint32(22))
	f.Add("[::1]", uint32(22))
	f.Add("DB", uint32(0))
	f.Add("127.0.0.1:1", uint32(1))
	f.Fuzz(func(t *testing.T, host string, port uint32) {
		to, err := sshd.Destination(host, port)
		if err != nil {
			return
		}
		if actor.CheckForward(to) != nil || strings.ToLower(to) != to || port == 0 || port > 65535 {
			t.Errorf("%q %d leads to %q", host, port, to)
		}
		if again, err := sshd.Destination(strings.ToUpper(host), port); err != nil || again != to {
			t.Errorf("%q %d leads to %q, in capitals to %q: %v", host, port, to, again, err)
		}
	})
}
