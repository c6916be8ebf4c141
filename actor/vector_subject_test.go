package actor_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/deputymesh/deputy/actor"
	"github.com/google/go-cmp/cmp"
)

type subjectFile struct {
	Description string          `json:"description"`
	Vectors     []subjectVector `json:"vectors"`
}

type subjectVector struct {
	Name     string    `json:"name"`
	Rule     string    `json:"rule"`
	Settings *settings `json:"settings,omitempty"`
	Peer     []string  `json:"peer"` // DER in base64, leaf first
	Subject  string    `json:"subject"`
	// First: this exchange would open the session, so the ID token must be fresh.
	First bool            `json:"first_exchange,omitempty"`
	Class string          `json:"class,omitempty"`
	Want  *subjectOutcome `json:"want,omitempty"`
}

type subjectOutcome struct {
	outcome
	Bare bool   `json:"bare"`
	Head string `json:"head,omitempty"`
	Left int    `json:"left"`
}

type subjectCase struct {
	vectorCase
	first bool
}

func subjectCases() []subjectCase {
	fresh := func(f *flow) { set(f.idToken, "exp", start.Add(5*time.Minute).Unix()) }
	noUser := func(f *flow) { f.user = nil }
	evilName := strings.Replace(planner, domain, "evil.example", 1)
	ok := func(name string, change func(*flow), agents ...string) subjectCase {
		return subjectCase{vectorCase: vectorCase{name: name, rule: "valid", change: change, agents: agents}}
	}
	no := func(class actor.Class, name string, change func(*flow), agents ...string) subjectCase {
		return subjectCase{vectorCase: vectorCase{name: name, rule: "subject", class: class, change: change, agents: agents}}
	}
	first := func(c subjectCase) subjectCase { c.first = true; return c }
	return []subjectCase{
		first(ok("first agent opens a session", fresh, planner)),
		ok("first agent, later exchange, ID token expired", nil, planner),
		ok("three agents", nil, planner, researcher, runner),
		first(ok("bare ID token", func(f *flow) { noUser(f); fresh(f) }, planner)),
		ok("grants without a user grant", noUser, planner, researcher, runner),
		first(no(actor.ClassIDTokenExpired, "session opened with an expired ID token", nil, planner)),
		no(actor.ClassIDTokenMissing, "no ID token", func(f *flow) { f.parts = func(p []string) []string { return p[:2] } }, planner, researcher),
		no(actor.ClassGrantDelegate, "presented by somebody who is not the last delegate", func(f *flow) { f.peer = svid(researcher) }, planner, researcher, runner),
		no(actor.ClassGrantTrustDomain, "user delegates into another trust domain", setUser("delegate", evilName), planner),
		no(actor.ClassGrantTrustDomain, "agent delegates into another trust domain", setGrant(0, "delegate", evilName), planner, researcher),
		{vectorCase: vectorCase{name: "no user grant where one is demanded", rule: "subject", class: actor.ClassUserGrantMissing, change: noUser,
			agents: []string{planner}, settings: &settings{RequireUserGrant: true}}},
		no(actor.ClassGrantChild, "user delegates past the first level", nil, researcher),
		no(actor.ClassActorRepeated, "repeated actor", nil, planner, researcher, planner),
		no(actor.ClassRootHash, "ID token of another sign-in", func(f *flow) {
			f.user.keep = true
			f.user.claims["root"].(map[string]any)["th"] = actor.Hash("x")
		}, planner),
		no(actor.ClassRootNonce, "user grant by a key that the sign-in doesn't vouch for", func(f *flow) {
			f.user.key = keyFor("evil")
			f.user.header["jwk"] = jwkOf(keyFor("evil"))
		}, planner),
		no(actor.ClassGrantPrevious, "grants without a user grant under another ID token", func(f *flow) {
			noUser(f)
			f.grants[0].keep = true
			set(f.grants[0], "prh", actor.Hash("another ID token"))
		}, planner, researcher),
		no(actor.ClassRootSubject, "grants without a user grant about another user", func(f *flow) {
			noUser(f)
			set(f.grants[0], "sub_id", map[string]any{"format": "iss_sub", "iss": idpURL, "sub": "mallory"})
		}, planner, researcher),
		no(actor.ClassGrantTxn, "changed txn", setGrant(1, "txn", hexID("other")), planner, researcher, runner),
		no(actor.ClassGrantCap, "widened cap", setGrant(1, "cap", pgCap(func(d map[string]any) { delete(d, "max_rows") })), planner, researcher, runner),
		no(actor.ClassOrder, "token in the subject", func(f *flow) {
			f.parts = func(p []string) []string { return append([]string{f.token.sign()}, p...) }
		}, planner),
		no(actor.ClassActorCount, "too many actors", func(f *flow) {
			set(f.user, "left", 7)
			for i, g := range f.grants {
				set(g, "left", 6-i)
			}
		}, agentsOf(6)...),
		no(actor.ClassIDToken, "ID token for another client", func(f *flow) { set(f.idToken, "aud", "x") }, planner),
		no(actor.ClassRootAge, "session past its maximum", func(f *flow) { set(f.idToken, "auth_time", start.Add(-13*time.Hour).Unix()) }, planner),
		{vectorCase: vectorCase{name: "revoked session", rule: "subject", class: actor.ClassRevoked, agents: []string{planner},
			settings: &settings{Revoked: []actor.RevocationKey{{Kind: actor.RevokeSession, Issuer: idpURL, Value: "d3f1c2b0"}}}}},
	}
}

func subjectVectors(t testing.TB) subjectFile {
	env := baseEnvironment()
	out := subjectFile{Description: "subject_token of an exchange, as a broker judges it; the environment is environment.json's, without a target."}
	for _, c := range subjectCases() {
		f := c.flow()
		vec := subjectVector{Name: c.name, Rule: c.rule, Settings: c.settings, Peer: x5c(f.peer), Subject: f.subject(), First: c.first, Class: string(c.class)}
		if c.class == "" {
			s, err := env.verifier(t, c.settings, true).VerifySubject(t.Context(), f.peer, vec.Subject)
			if err != nil {
				t.Errorf("%s: %v", c.name, err)
				continue
			}
			vec.Want = outcomeOfSubject(s)
		}
		out.Vectors = append(out.Vectors, vec)
	}
	return out
}

func outcomeOfSubject(s *actor.Subject) *subjectOutcome {
	o := &subjectOutcome{Bare: s.Bare, Head: s.Head, Left: s.Left}
	o.outcome = outcome{User: s.User, SID: s.SID, Txn: s.Txn, Hops: hopOutcomes(s.Hops), Expires: s.Expires.Unix(), Details: s.Cap, Purpose: s.Purpose}
	o.LowestGrade = string((&actor.Chain{Hops: s.Hops}).LowestGrade())
	for _, k := range s.RevocationKeys() {
		o.Revocations = append(o.Revocations, k.String())
	}
	return o
}

func TestEverySubjectVectorIsJudgedAsItSays(t *testing.T) {
	env := readVectors[environment](t, "environment.json")
	for _, vec := range readVectors[subjectFile](t, "subjects.json").Vectors {
		t.Run(vec.Name, func(t *testing.T) {
			v := env.verifier(t, vec.Settings, true)
			s, err := v.VerifySubject(t.Context(), must(decodeChain(vec.Peer)), vec.Subject)
			if err == nil && vec.First {
				err = s.RequireFresh(time.Unix(env.Settings.Now, 0))
			}
			if vec.Class != "" {
				checkRefusal(t, err, vec.Class, nil)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(must(json.Marshal(vec.Want))), string(must(json.Marshal(outcomeOfSubject(s))))); diff != "" {
				t.Error(diff)
			}
		})
	}
}
