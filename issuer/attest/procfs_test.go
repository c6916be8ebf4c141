package attest

import (
	"strings"
	"testing"
)

func TestParseStatIsntFooledByTheName(t *testing.T) {
	rest := " S 7 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 1 1\n"
	for _, name := range []string{"sh", "a b", "x) S 1 1 1", ") S 99 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 1", "(((", "new\nline)"} {
		got, err := parseStat([]byte("12 (" + name + ")" + rest))
		if err != nil || got != (stat{ppid: 7, start: 4242}) {
			t.Errorf("name %q: %+v %v", name, got, err)
		}
	}
	for _, bad := range []string{"", "12 sh S 7", "12 (sh) S 7 1 1", "12 (sh)" + strings.Replace(rest, " 7 ", " -7 ", 1), "12 (sh)" + strings.Replace(rest, "4242", "x", 1)} {
		if got, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q: %+v", bad, got)
		}
	}
}

func TestParseCgroup(t *testing.T) {
	for in, want := range map[string]string{
		"0::/user.slice/x\n":                     "/user.slice/x",
		"9:name=systemd:/a\n4:memory:/b\n0::/\n": "/",
		"4:memory:/b\n":                          "",
		"":                                       "",
		"10::/x\n0::/a 0::/b\n":                  "/a 0::/b",
	} {
		if got := parseCgroup([]byte(in)); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestParseIDs(t *testing.T) {
	status := "Name:\tx\\nUid:\t0\t0\t0\t0\nUmask:\t0022\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\n"
	if got, err := parseIDs([]byte(status), "Uid"); err != nil || got != [4]uint32{1, 2, 3, 4} {
		t.Errorf("%v %v", got, err)
	}
	for _, bad := range []string{"", "Uid:\t1\t2\t3\n", "Uid:\t1\t2\t3\t-4\n", "Uid:\t1\t2\t3\t4294967296\n", "Gid:\t1\t2\t3\t4\n"} {
		if got, err := parseIDs([]byte(bad), "Uid"); err == nil {
			t.Errorf("%q: %v", bad, got)
		}
	}
}

func TestMarksAreWhatTheFirstProcessHasnt(t *testing.T) {
	plain, container := "NoNewPrivs:\t0\nSeccomp_filters:\t0\n", "NoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t1\n"
	for _, c := range []struct {
		status, base string
		want         bool
	}{
		{plain, plain, false},
		{"NoNewPrivs:\t1\nSeccomp_filters:\t0\n", plain, false},
		{"NoNewPrivs:\t0\nSeccomp_filters:\t1\n", plain, false},
		{container, plain, true},
		{container, container, false},
		{"NoNewPrivs:\t1\nSeccomp_filters:\t2\n", container, true},
		{"NoNewPrivs:\t1\nSeccomp_filters:\t2\n", "", true},
		{"NoNewPrivs:\t1\n", "NoNewPrivs:\t0\n", true}, // a kernel that doesn't count
		{"NoNewPrivs:\t1\n", "NoNewPrivs:\t1\n", false},
	} {
		if got := parseRestraints([]byte(c.status)).marked(parseRestraints([]byte(c.base))); got != c.want {
			t.Errorf("%q over %q: %v", c.status, c.base, got)
		}
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("12 (sh) S 7 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 1 1"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if got, err := parseStat(b); err == nil && got.ppid < 0 {
			t.Errorf("%q: %+v", b, got)
		}
		parseCgroup(b)
		parseIDs(b, "Uid")
	})
}

func TestTheExecutableCacheIsByFileNotByName(t *testing.T) {
	h := newHashes()
	one, err := h.executable(pidOfSleeper(t, "/bin/sleep"))
	if err != nil {
		t.Fatal(err)
	}
	two, err := h.executable(pidOfSleeper(t, copyOf(t, "/bin/sleep", nil)))
	if err != nil {
		t.Fatal(err)
	}
	three, err := h.executable(pidOfSleeper(t, copyOf(t, "/bin/sleep", []byte("x"))))
	if err != nil {
		t.Fatal(err)
	}
	if one.SHA256 != two.SHA256 || one.id == two.id || one.Path == two.Path {
		t.Errorf("a copy: %+v %+v", one, two)
	}
	if one.SHA256 == three.SHA256 {
		t.Error("another file has the same digest")
	}
	if len(h.known) != 3 {
		t.Errorf("%d files are known, want 3", len(h.known))
	}
}
