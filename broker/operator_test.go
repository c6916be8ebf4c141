package broker_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/internal/testca"
)

// operatorReply is what the operators' API answers.
type operatorReply struct {
	reply
	ID       string
	Revision uint64
	Version  uint64
	Applied  []struct {
		Proxy string
		Ended uint32 `json:"sessions_ended"`
	}
	Pending []string
}

// call is an operator's call: the proof is by key, over signed, for act.
func (l *login) call(path, act string, body []byte, change ...func(*actor.OperatorRequest, *http.Request)) operatorReply {
	l.m.t.Helper()
	now := l.m.clock.now()
	p := actor.OperatorRequest{
		Issuer: l.user.Issuer, Mesh: meshURL, Act: act, Body: sha256.Sum256(body), IssuedAt: now, Expires: now.Add(actor.OperatorLife), ID: actor.NewHexID(),
	}
	req, err := http.NewRequest(http.MethodPost, "https://"+l.m.webAddr+path, bytes.NewReader(body))
	if err != nil {
		l.m.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+l.idToken)
	for _, f := range change {
		f(&p, req)
	}
	if _, given := req.Header["Deputy-Operator-Proof"]; !given {
		proof, err := actor.SignOperatorRequest(l.key, p)
		if err != nil {
			l.m.t.Fatal(err)
		}
		req.Header.Set("Deputy-Operator-Proof", proof)
	}
	resp, err := l.m.web.Do(req)
	if err != nil {
		l.m.t.Fatal(err)
	}
	defer resp.Body.Close()
	out := operatorReply{}
	out.status = resp.StatusCode
	var raw json.RawMessage
	if err := json.NewDecoder(resp.Body).Decode(&raw); err != nil {
		l.m.t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &out); err != nil {
		l.m.t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &out.reply); err != nil {
		l.m.t.Fatal(err)
	}
	return out
}

func (l *login) revoke(body string) operatorReply {
	l.m.t.Helper()
	return l.call("/operator/v1/revocations", "revoke", []byte(body))
}

func (m *mesh) admin() *login {
	m.t.Helper()
	return m.login("root", func(c map[string]any) { c["groups"] = []string{"platform", "staff"} })
}

func TestWhoMayCallOperators(t *testing.T) {
	m := newMesh(t)
	f := m.flow("alice")
	m.ok(m.exchange(f.planner, join(f.root, f.login.idToken)))
	admin := m.admin()
	user := []byte(fmt.Sprintf(`{"kind":"user","iss":%q,"sub":"alice"}`, m.idp.URL))
	const path, act = "/operator/v1/revocations", "revoke"
	for name, tc := range map[string]struct {
		do   func() operatorReply
		want int
	}{
		"ID token alone": {func() operatorReply {
			return admin.call(path, act, user, func(_ *actor.OperatorRequest, r *http.Request) { r.Header.Set("Deputy-Operator-Proof", "x") })
		}, http.StatusUnauthorized},
		"no proof at all": {func() operatorReply {
			return admin.call(path, act, user, func(_ *actor.OperatorRequest, r *http.Request) {
				r.Header["Deputy-Operator-Proof"] = nil
			})
		}, http.StatusUnauthorized},
		"a proof by another key: an agent that saw the ID token": {func() operatorReply {
			thief := *admin
			thief.key = testca.NewKey(t)
			return thief.call(path, act, user)
		}, http.StatusUnauthorized},
		"a proof of another call": {func() operatorReply {
			return admin.call(path, act, user, func(p *actor.OperatorRequest, _ *http.Request) { p.Act = "policy" })
		}, http.StatusUnauthorized},
		"a proof over another body": {func() operatorReply {
			return admin.call(path, act, user, func(p *actor.OperatorRequest, _ *http.Request) { p.Body = sha256.Sum256([]byte("x")) })
		}, http.StatusUnauthorized},
		"a proof for another mesh": {func() operatorReply {
			return admin.call(path, act, user, func(p *actor.OperatorRequest, _ *http.Request) { p.Mesh = "https://other.example" })
		}, http.StatusUnauthorized},
		"an old proof": {func() operatorReply {
			return admin.call(path, act, user, func(p *actor.OperatorRequest, _ *http.Request) {
				p.IssuedAt, p.Expires = p.IssuedAt.Add(-5*time.Minute), p.IssuedAt.Add(-4*time.Minute)
			})
		}, http.StatusUnauthorized},
		"a sign-in that has expired": {func() operatorReply {
			return m.login("root", func(c map[string]any) {
				c["groups"], c["exp"] = "platform", m.clock.now().Add(-time.Second).Unix()
			}).call(path, act, user)
		}, http.StatusUnauthorized},
		"the user grant as proof": {func() operatorReply {
			return admin.call(path, act, user, func(_ *actor.OperatorRequest, r *http.Request) { r.Header.Set("Deputy-Operator-Proof", f.root) })
		}, http.StatusUnauthorized},
		"a delegated token instead of the ID token": {func() operatorReply {
			token := m.ok(m.exchange(f.planner, join(f.root, f.login.idToken)))
			return admin.call(path, act, user, func(_ *actor.OperatorRequest, r *http.Request) { r.Header.Set("Authorization", "Bearer "+token) })
		}, http.StatusUnauthorized},
		"a user without a role, about somebody else": {func() operatorReply {
			return m.login("bob").call(path, act, user)
		}, http.StatusForbidden},
		"a user about himself as a whole": {func() operatorReply {
			return m.login("alice").call(path, act, user)
		}, http.StatusForbidden},
		"a user about another's session": {func() operatorReply {
			return m.login("bob").call(path, act, []byte(fmt.Sprintf(`{"kind":"session","value":%q}`, f.login.sid)))
		}, http.StatusForbidden},
		"a user about nobody's task": {func() operatorReply {
			return m.login("bob").call(path, act, []byte(`{"kind":"task","value":"abc"}`))
		}, http.StatusForbidden},
		"a user publishing policy": {func() operatorReply {
			return m.login("bob").call("/operator/v1/policy", "policy", []byte("x"))
		}, http.StatusForbidden},
		"an unknown member": {func() operatorReply {
			return admin.call(path, act, []byte(`{"kind":"task","value":"abc","force":true}`))
		}, http.StatusBadRequest},
		"a duplicate member": {func() operatorReply {
			return admin.call(path, act, []byte(`{"kind":"task","value":"abc","value":"def"}`))
		}, http.StatusBadRequest},
		"an unknown kind": {func() operatorReply { return admin.call(path, act, []byte(`{"kind":"world","value":"abc"}`)) }, http.StatusBadRequest},
		"an agent that is none": {func() operatorReply {
			return admin.call(path, act, []byte(`{"kind":"agent","value":"spiffe://corp.example/deputy/broker"}`))
		}, http.StatusBadRequest},
		"too large": {func() operatorReply { return admin.call(path, act, bytes.Repeat([]byte(" "), 20<<10)) }, http.StatusRequestEntityTooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			if r := tc.do(); r.status != tc.want {
				t.Errorf("%s, want %d", r.reply, tc.want)
			}
		})
	}
	m.ok(m.exchange(f.planner, join(f.root, f.login.idToken)))

	// A proof is good once.
	var proof string
	body := []byte(`{"kind":"task","value":"abc"}`)
	if r := admin.call(path, act, body, func(p *actor.OperatorRequest, r *http.Request) {
		var err error
		if proof, err = actor.SignOperatorRequest(admin.key, *p); err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Deputy-Operator-Proof", proof)
	}); r.status != http.StatusOK {
		t.Fatalf("%s", r.reply)
	}
	replay := func(_ *actor.OperatorRequest, r *http.Request) { r.Header.Set("Deputy-Operator-Proof", proof) }
	if r := admin.call(path, act, body, replay); r.status != http.StatusUnauthorized || !strings.Contains(r.Text, "used before") {
		t.Errorf("replayed: %s", r.reply)
	}
	m.stop()
	m.start()
	if r := admin.call(path, act, body, replay); r.status != http.StatusUnauthorized {
		t.Errorf("replayed after a restart: %s", r.reply)
	}

	// Everybody may end what is his own.
	if r := m.login("alice").revoke(fmt.Sprintf(`{"kind":"session","value":%q}`, f.login.sid)); r.status != http.StatusOK {
		t.Errorf("own session: %s", r.reply)
	}
	m.refused(m.exchange(f.planner, join(f.root, f.login.idToken)), "invalid_request", string(actor.ClassRevoked), "session.ended")
}
