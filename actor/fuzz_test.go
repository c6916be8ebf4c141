package actor_test

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"strings"
	"testing"

	"github.com/deputymesh/deputy/actor"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// A parser may refuse, with a class, or accept what it prints back; it never
// panics.

func refusedWithClass(t *testing.T, err error) bool {
	t.Helper()
	if err != nil && actor.ClassOf(err) == "" {
		t.Errorf("refused without a class: %v", err)
	}
	return err != nil
}

func FuzzParseCredential(f *testing.F) {
	for _, c := range []*flow{chainOf(planner), chainOf(planner, researcher)} {
		f.Add(c.credential())
	}
	f.Add("a.b.c~d.e.f")
	peer, v := svid(researcher), newVerifier(f)
	f.Fuzz(func(t *testing.T, s string) {
		c, err := actor.ParseCredential(s)
		if refusedWithClass(t, err) {
			return
		}
		if c.String() != s {
			t.Errorf("%q came out as %q", s, c.String())
		}
		_, err = v.Verify(t.Context(), peer, s)
		refusedWithClass(t, err)
	})
}

func FuzzParseSubject(f *testing.F) {
	f.Add(chainOf(planner, researcher).subject())
	f.Fuzz(func(t *testing.T, s string) {
		c, err := actor.ParseSubject(s)
		if !refusedWithClass(t, err) && c.String() != s {
			t.Errorf("%q came out as %q", s, c.String())
		}
	})
}

// FuzzStatements gives header and claims to every reader of a single statement.
func FuzzStatements(f *testing.F) {
	c := chainOf(planner, researcher)
	for _, part := range strings.Split(c.credential(), "~") {
		p := strings.Split(part, ".")
		f.Add(unb64(p[0]), unb64(p[1]))
	}
	for _, s := range []statementVector{keyStatement(nil), operatorRequest(nil)} {
		p := strings.Split(s.Statement, ".")
		f.Add(unb64(p[0]), unb64(p[1]))
	}
	f.Fuzz(func(t *testing.T, header, claims []byte) {
		raw := b64(header) + "." + b64(claims) + "." + b64(make([]byte, 64))
		_, err := actor.ParseUserGrant(raw)
		refusedWithClass(t, err)
		_, err = actor.ParseGrant(raw)
		refusedWithClass(t, err)
		_, err = actor.ParseToken(raw)
		refusedWithClass(t, err)
		_, err = actor.ParseKeyStatement(raw, &keyFor("certifying").PublicKey, meshURL)
		if !refusedWithClass(t, err) {
			t.Error("a key statement without a signature is accepted")
		}
		_, err = actor.VerifyOperatorRequest(raw, actor.OperatorCall{Issuer: idpURL, Mesh: meshURL, Nonce: "x", Act: "revoke", Now: now})
		if !refusedWithClass(t, err) {
			t.Error("an operator's request without a signature is accepted")
		}
	})
}

func FuzzParseDetails(f *testing.F) {
	f.Add(must(json.Marshal(pgCap())))
	f.Add([]byte(`[{"type":"deputy_postgres","locations":[],"actions":null}]`))
	f.Fuzz(func(t *testing.T, data []byte) {
		d, err := actor.ParseDetails(data)
		if refusedWithClass(t, err) {
			return
		}
		back, err := actor.ParseDetails(must(json.Marshal(d)))
		if err != nil || back.Within(d) != nil || d.Within(back) != nil {
			t.Errorf("%s came back as %s, %v", d, back, err)
		}
	})
}

func FuzzParseAgentID(f *testing.F) {
	f.Add(runner)
	f.Add("spiffe://" + domain + "/agent/a/" + hexID("x") + "/../b")
	f.Fuzz(func(t *testing.T, s string) {
		a, err := actor.AgentIDFromString(s)
		if refusedWithClass(t, err) {
			return
		}
		if a.String() != s || a.Depth() != len(a.Segments()) || a.Depth() < 1 || !strings.HasPrefix(a.Path(), "/agent/") {
			t.Errorf("%q came out as %q with %d segments", s, a, a.Depth())
		}
		if p, ok := a.Parent(); ok && !a.IsDirectChildOf(p) {
			t.Errorf("%q is not a child of its parent %q", a, p)
		}
	})
}

func FuzzParsePathPattern(f *testing.F) {
	f.Add("/agent/planner/*/researcher/*", runner)
	f.Fuzz(func(t *testing.T, pattern, id string) {
		p, err := actor.ParsePathPattern(pattern)
		if err != nil {
			return
		}
		parsed, err := spiffeid.FromString(id)
		if err == nil && p.MatchID(parsed) && strings.Count(parsed.Path(), "/") != strings.Count(pattern, "/") {
			t.Errorf("%q matches %q across segments", pattern, id)
		}
		if p.String() != pattern {
			t.Errorf("%q came out as %q", pattern, p)
		}
	})
}

func FuzzGradeExtension(f *testing.F) {
	f.Add(gradeExt(actor.Attested)[0].Value)
	f.Add(must(actor.GradeExtension(actor.Asserted, actor.Evidence{})).Value)
	oid := asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 32473, 1, 1}
	f.Fuzz(func(t *testing.T, der []byte) {
		g, e, err := actor.GradeFromCertificate(&x509.Certificate{Extensions: []pkix.Extension{{Id: oid, Value: der}}})
		if refusedWithClass(t, err) {
			return
		}
		if again := must(actor.GradeExtension(g, e)); string(again.Value) != string(der) {
			t.Errorf("%x is read as %s %+v, which is %x", der, g, e, again.Value)
		}
	})
}
