package actor_test

import (
	"crypto/x509"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/internal/testverifier"
)

// answer is what the second verifier says.
type answer struct {
	Class  string          `json:"class"`
	Hop    *int            `json:"hop"`
	Detail string          `json:"detail"`
	Chain  json.RawMessage `json:"chain"`
}

func (a answer) String() string {
	if a.Class == "" {
		return "accepted"
	}
	return a.Detail
}

// Two verifiers, one of them written from the specification alone, judge thousands of damaged credentials and subjects
// the same: damaged before they were signed, so that each rule is asked behind a good signature, and after it.
func TestTwoVerifiersJudgeMutationsTheSame(t *testing.T) {
	t.Parallel()
	second := testverifier.Start(t)
	const rounds = 2000
	m := &mutator{rand.New(rand.NewPCG(20261120, 3))}
	env := baseEnvironment()
	accepted, sameClass, refused := 0, 0, 0
	for i := range rounds {
		c := m.mutant(t)
		ours, theirs := c.judge(t, env), answer{}
		second.Ask(t, c.question(), &theirs)
		if ours.class == "" {
			accepted++
		} else {
			refused++
		}
		if (ours.class == "") != (theirs.Class == "") {
			t.Errorf("round %d, %s: ours %v, theirs %s\n%s", i, c.what, ours.err, theirs, c.whole)
			continue
		}
		if ours.class == theirs.Class {
			sameClass++
		} else if testing.Verbose() {
			t.Logf("round %d, %s: ours %v, theirs %s", i, c.what, ours.err, theirs)
		}
		if ours.class != "" {
			continue
		}
		var got any
		if err := json.Unmarshal(theirs.Chain, &got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(ours.outcome, got); diff != "" {
			t.Errorf("round %d, %s: another outcome (-ours +theirs):\n%s", i, c.what, diff)
		}
	}
	t.Logf("%d accepted, %d refused; the same class for %d of %d", accepted, refused, sameClass, rounds)
	// A document that breaks several rules of content may be refused with the class of any of them; few do.
	if accepted < rounds/20 || refused < rounds/2 || sameClass < rounds*98/100 {
		t.Errorf("%d accepted, %d refused, %d of the same class: the mutations don't ask enough", accepted, refused, sameClass)
	}
}

// Narrowing and matching of random capabilities, malformed ones too, come out the same.
func TestTwoVerifiersCompareCapabilitiesTheSame(t *testing.T) {
	t.Parallel()
	second := testverifier.Start(t)
	m := &mutator{rand.New(rand.NewPCG(20261120, 6))}
	counts := map[string]int{}
	for range 3000 {
		parent, child := m.details(), m.details()
		action := map[string]any{"type": "deputy_postgres", "target": pick(m, target, otherTarget).String(), "verb": pick(m, "select", "insert", "set", "ddl"),
			"database": pick(m, "a", "b", ""), "schema": pick(m, "", "s", "t", "*"), "table": pick(m, "", "s", "u", "*")}
		p, err := actor.ParseDetails(must(json.Marshal(parent)))
		var c actor.Details
		if err == nil {
			c, err = actor.ParseDetails(must(json.Marshal(child)))
		}
		if err == nil {
			err = c.Within(p)
		}
		var narrowing struct{ Class string }
		second.Ask(t, map[string]any{"narrowing": map[string]any{"parent": parent, "child": child}}, &narrowing)
		if got := verdict(string(actor.ClassOf(err))); got != verdict(narrowing.Class) {
			t.Errorf("ours %q, theirs %q: %s within %s", got, narrowing.Class, must(json.Marshal(child)), must(json.Marshal(parent)))
		}
		counts["narrowing "+verdict(narrowing.Class)]++

		var matching struct {
			Class   string
			MaxRows int64 `json:"max_rows"`
		}
		var limits actor.Limits
		if p, err = actor.ParseDetails(must(json.Marshal(parent))); err == nil {
			limits, err = p.Match(actor.PostgresAction{Target: spiffeid.RequireFromString(action["target"].(string)), Verb: action["verb"].(string),
				Database: action["database"].(string), Schema: action["schema"].(string), Table: action["table"].(string)})
		}
		second.Ask(t, map[string]any{"matching": map[string]any{"authorization_details": parent, "action": action}}, &matching)
		if got := verdict(string(actor.ClassOf(err))); got != verdict(matching.Class) || limits.MaxRows != matching.MaxRows {
			t.Errorf("ours %q %d, theirs %q %d: %s within %s", got, limits.MaxRows, matching.Class, matching.MaxRows, must(json.Marshal(action)), must(json.Marshal(parent)))
		}
		counts["matching "+verdict(matching.Class)]++
	}
	t.Logf("%v", counts)
	for _, want := range []string{"narrowing ", "narrowing details.wider", "narrowing malformed", "matching ", "matching action.outside"} {
		if counts[want] < 50 {
			t.Errorf("%d times %q: the capabilities don't ask enough", counts[want], want)
		}
	}
}

// verdict is a class of comparing, or that something is malformed: which of several faults is found first is nobody's promise.
func verdict(class string) string {
	switch actor.Class(class) {
	case "", actor.ClassWider, actor.ClassOutside:
		return class
	}
	return "malformed"
}

// details are capabilities from so few values that relations happen, now and then malformed.
func (m *mutator) details() []any {
	list := func(from ...any) []any {
		out := []any{}
		for _, v := range from {
			if m.IntN(2) == 0 {
				out = append(out, v)
			}
		}
		if len(out) == 0 {
			return from[:1]
		}
		return out
	}
	var out []any
	for range 1 + m.IntN(2) {
		d := map[string]any{"type": "deputy_postgres", "locations": list(target.String(), otherTarget.String()), "actions": list("select", "insert", "set", "ddl")}
		if m.IntN(2) == 0 {
			d["databases"] = list("a", "b")
		}
		if m.IntN(2) == 0 {
			d["tables"] = list("s.*", "*.u", "s.u", "t.s", "*.*")
		}
		if m.IntN(2) == 0 {
			d["max_rows"] = 1 + m.IntN(3)
		}
		if m.IntN(12) == 0 {
			d[pick(m, "type", "locations", "actions", "databases", "tables", "max_rows")] = pick[any](m, []any{}, []any{"a", "a"}, []any{""}, []any{"a.b.c"}, []any{"a b"}, []any{"\u00e9\u202e"},
				[]any{strings.Repeat("x", 64)}, []any{`a"b`}, []any{"**"}, 0, -1, "", nil, "deputy_ssh")
		}
		out = append(out, d)
	}
	return out
}

// mutant is one damaged credential or subject.
type mutant struct {
	what     string
	whole    string
	subject  bool
	first    bool
	peer     []*x509.Certificate
	settings settings
}

func (c *mutant) question() any {
	v := map[string]any{"peer": x5c(c.peer), "settings": c.settings}
	if c.subject {
		v["subject"], v["first_exchange"] = c.whole, c.first
		return map[string]any{"subject": v}
	}
	v["credential"] = c.whole
	return map[string]any{"credential": v}
}

type judgement struct {
	class   string
	err     error
	outcome any
}

func (c *mutant) judge(t *testing.T, env environment) judgement {
	t.Helper()
	v := env.verifier(t, &c.settings, c.subject)
	var out any
	var err error
	if c.subject {
		var s *actor.Subject
		if s, err = v.VerifySubject(t.Context(), c.peer, c.whole); err == nil && c.first {
			err = s.RequireFresh(time.Unix(merge(env.Settings, c.settings).Now, 0))
		}
		if err == nil {
			out = outcomeOfSubject(s)
		}
	} else {
		var chain *actor.Chain
		if chain, err = v.Verify(t.Context(), c.peer, c.whole); err == nil {
			out = chainOutcome(chain)
		}
	}
	if err != nil {
		class := string(actor.ClassOf(err))
		if class == "" {
			t.Errorf("%s: refused without a class: %v", c.what, err)
		}
		return judgement{class: class, err: err}
	}
	var plain map[string]any
	if err := json.Unmarshal(must(json.Marshal(out)), &plain); err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(plain["revocation_keys"].([]any), func(a, b any) int { return strings.Compare(a.(string), b.(string)) })
	return judgement{outcome: plain}
}

type mutator struct{ *rand.Rand }

func pick[T any](m *mutator, list ...T) T { return list[m.IntN(len(list))] }

// mutant damages a valid flow at one or two places.
func (m *mutator) mutant(t *testing.T) *mutant {
	agents := pick(m, []string{planner}, []string{planner, researcher}, []string{planner, researcher, runner}, agentsOf(5))
	f := chainOf(agents...)
	c := &mutant{subject: m.IntN(4) == 0, first: m.IntN(3) == 0}
	if m.IntN(6) == 0 {
		f.user = nil
		if !c.subject {
			f.idToken = nil
		}
		c.settings.RootEvidence = "broker"
		c.note("without a user grant")
	}
	if c.first {
		set(f.idTokenOr(), "exp", start.Add(5*time.Minute).Unix())
	}
	for range 1 + m.IntN(2) {
		m.damage(c, f, agents[len(agents)-1])
	}
	if c.subject {
		c.whole = f.subject()
	} else {
		c.whole = f.credential()
	}
	if m.IntN(8) == 0 {
		c.note("bytes of the whole")
		c.whole = m.ascii(c.whole)
	}
	c.peer = f.peer
	return c
}

func (c *mutant) note(format string, args ...any) { c.what += fmt.Sprintf(format+"; ", args...) }

// idTokenOr is the ID token, or one that nobody sees.
func (f *flow) idTokenOr() *statement {
	if f.idToken == nil {
		return &statement{claims: map[string]any{}}
	}
	return f.idToken
}

func (f *flow) statements() []*statement {
	var out []*statement
	for _, s := range append([]*statement{f.token, f.user, f.idToken}, f.grants...) {
		if s != nil {
			out = append(out, s)
		}
	}
	return out
}

func (m *mutator) damage(c *mutant, f *flow, presenter string) {
	all := f.statements()
	i := m.IntN(len(all))
	s := all[i]
	switch m.IntN(13) {
	case 0, 1, 2: // one value of the claims
		c.note("value in statement %d", i)
		m.value(s.claims)
	case 3, 4: // the text of the claims
		c.note("text of the claims of statement %d", i)
		s.rawClaims = m.text
	case 5:
		c.note("text of the header of statement %d", i)
		s.rawHeader = m.text
	case 6:
		c.note("header of statement %d", i)
		m.value(s.header)
	case 7: // keys
		c.note("key of statement %d", i)
		s.key = keyFor(pick(m, "evil", "login", "token", "idp", planner))
	case 8: // computed members stay as somebody else's
		c.note("prh, head or th of statement %d", i)
		s.keep = true
		s.claims[pick(m, "prh", "head")] = actor.Hash(pick(m, "", "another"))
	case 9: // parts
		f.parts = func(p []string) []string {
			c.note("parts")
			a, b := m.IntN(len(p)), m.IntN(len(p))
			switch m.IntN(3) {
			case 0:
				p[a], p[b] = p[b], p[a]
			case 1:
				p = append(p[:a:a], p[a+1:]...)
			default:
				p = append(p[:a:a], append([]string{p[b]}, p[a:]...)...)
			}
			if len(p) == 0 {
				return []string{""}
			}
			return p
		}
	case 10:
		c.note("peer")
		change := pick(m, m.certificate, m.certificate, func(cert *certificate) { cert.id = pick(m, planner, researcher, runner) })
		f.peer = svid(presenter, change)
		if m.IntN(2) == 0 {
			set(f.token, "cnf", map[string]any{"x5t#S256": actor.CertificateHash(f.peer[0])})
		}
	case 11:
		if len(f.grants) > 0 {
			c.note("certificate of a grant")
			g := f.grants[m.IntN(len(f.grants))]
			if iss, ok := g.claims["iss"].(string); ok {
				g.header["x5c"] = x5c(svid(iss, m.certificate))
			}
		}
	default:
		m.setting(c)
	}
}

func (m *mutator) certificate(c *certificate) {
	switch m.IntN(7) {
	case 0:
		c.notAfter = start.Add(time.Duration(m.IntN(3600)) * time.Second)
	case 1:
		c.notBefore = start.Add(time.Duration(m.IntN(240)-60) * time.Second)
	case 2:
		c.ca = "evil"
	case 3:
		c.usage = pick(m, x509.KeyUsageKeyAgreement, x509.KeyUsageDigitalSignature|x509.KeyUsageCRLSign, x509.KeyUsageDigitalSignature|x509.KeyUsageContentCommitment)
	case 4:
		c.id = pick(m, idOf("/deputy/broker").String(), target.String(), "https://corp.example/x", c.id+"/", strings.ToUpper(c.id), strings.Replace(c.id, domain, "evil.example", 1))
	case 5:
		c.extra = nil
	default: // the grade's DER
		c.extra = gradeExt(actor.Attested)
		der := c.extra[0].Value
		der[m.IntN(len(der))] ^= 1 << m.IntN(8)
	}
}

func (m *mutator) setting(c *mutant) {
	s := &c.settings
	switch m.IntN(6) {
	case 0:
		s.Now = pick(m, now.Unix()-91, now.Unix()-90, now.Unix()-30, now.Unix()+269, now.Unix()+270, now.Unix()+3000)
	case 1:
		s.MaxActors = 1 + m.IntN(8)
	case 2:
		s.RootEvidence = "broker"
	case 3:
		s.RequireUserGrant = true
	case 4:
		s.MaxSession = pick[int64](m, 3600, 3689, 3690, 3691, 7200)
	default:
		s.Delegations = []delegation{{"/agent/planner/*", pick(m, "/agent/a0/*", "/agent/*/*", "/agent/planner/*/researcher/*")}}
	}
	c.note("settings %s", must(json.Marshal(s)))
}

var interesting = []any{"", "x", "a\u202eb", 0, -1, 1, 2, 7, 8, 1 << 37, 1<<37 + 1, 1.5, true, nil, []any{}, map[string]any{}, []any{"a"}, "ES256", "at+jwt",
	"JWT", "deputy-grant+jwt", "deputy-user-grant+jwt", meshURL, meshURL + "/", idpURL, "http://h:1", "https://h:/", "https://[::1]:8/a%20b", target.String(),
	planner, researcher, runner, "spiffe://corp.example", "spiffe://corp.example/agent/planner", strings.Repeat("a", 200), strings.Repeat("a", 201),
	strings.Repeat("a", 255), strings.Repeat("a", 256), strings.Repeat("0", 32), "asserted", []any{"analyst", "analyst"}, []any{nil}, clientID, []any{clientID}, []any{clientID, "b"},
	start.Unix(), start.Add(time.Hour).Unix(), now.Add(30 * time.Second).Unix(), now.Add(31 * time.Second).Unix(), now.Add(-30 * time.Second).Unix(), now.Add(-29 * time.Second).Unix()}

// value replaces, drops or adds one member somewhere below o.
func (m *mutator) value(o map[string]any) {
	names := make([]string, 0, len(o))
	for n := range o {
		names = append(names, n)
	}
	if len(names) == 0 {
		o["x"] = 1
		return
	}
	slices.Sort(names)
	n := pick(m, names...)
	if m.IntN(2) == 0 {
		if below, ok := o[n].(map[string]any); ok {
			m.value(below)
			return
		}
		if list, ok := o[n].([]any); ok && len(list) > 0 {
			if below, ok := list[m.IntN(len(list))].(map[string]any); ok {
				m.value(below)
				return
			}
			o[n] = append(slices.Clone(list), pick(m, interesting...))
			return
		}
	}
	switch m.IntN(6) {
	case 0:
		delete(o, n)
	case 1:
		o[pick(m, "x", "aud", "acr", "azp", "kid", "crit", strings.ToUpper(n), n+" ", "databases", "max_rows", "act", "head", "prh")] = pick(m, interesting...)
	case 2:
		if i, ok := o[n].(int64); ok {
			o[n] = i + pick[int64](m, -3600, -31, -30, -1, 1, 30, 31, 3600)
			return
		}
		o[n] = o[pick(m, names...)]
	default:
		o[n] = pick(m, interesting...)
	}
}

// text changes JSON where a map can't: duplicates, other spellings, broken bytes.
func (m *mutator) text(s string) string {
	at := m.IntN(len(s))
	switch m.IntN(9) {
	case 0:
		return s[:at] + s[at+1:]
	case 1:
		return s[:at] + pick(m, "0", "-", "\"", "\\", "\\u0061", "\\ud83d\\ude00", "\\ud800", "{", "}", "[", "]", ",", ":", " ", "\t", "\x00", "\x7f", "\xff", "\xc0\xaf", "\ufeff", "é", "1e5", ".0", "null", "\u2028") + s[at:]
	case 2:
		b := []byte(s)
		b[at] ^= 1 << m.IntN(8)
		return string(b)
	case 3: // a letter as its escape
		if c := s[at]; c >= 'a' && c <= 'z' {
			return s[:at] + fmt.Sprintf(`\u%04x`, c) + s[at+1:]
		}
		return s
	case 4: // a member twice
		if end := strings.IndexByte(s, ','); end > 1 {
			return "{" + s[1:end] + "," + s[1:]
		}
		return s
	case 5:
		return s + pick(m, " ", "\n", "x", "{}", "\x00")
	case 6:
		return strings.ReplaceAll(s, ":", pick(m, " : ", ":\t", "::"))
	case 7:
		return strings.Replace(s, pick(m, "iss", "sub", "kid", "typ", "aud", "exp"), pick(m, "ISS", "ſub", "\u212aid", "Typ", "aud ", "exp"), 1)
	default:
		end := min(len(s), at+1+m.IntN(20))
		return s[:at] + s[end:]
	}
}

// ascii changes the finished string, after every signature.
func (m *mutator) ascii(s string) string {
	if s == "" {
		return "A"
	}
	at := m.IntN(len(s))
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.~+/= \n"
	switch m.IntN(4) {
	case 0:
		return s[:at] + s[at+1:]
	case 1:
		return s[:at]
	case 2:
		return s[:at] + string(letters[m.IntN(len(letters))]) + s[at:]
	default:
		return s[:at] + string(letters[m.IntN(len(letters))]) + s[at+1:]
	}
}
