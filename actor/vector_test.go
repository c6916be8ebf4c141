package actor_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/deputymesh/deputy/actor"
	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

var update = flag.Bool("update", false, "write the test vectors again")

const vectorDir = "testdata/vectors"

// environment is what a verifier believes in all vectors of a file.
type environment struct {
	Description      string              `json:"description"`
	TrustDomain      string              `json:"trust_domain"`
	Bundles          map[string][]string `json:"bundles"` // trust domain -> CA certificates, DER in base64
	Mesh             string              `json:"mesh"`
	CertifyingKey    map[string]any      `json:"certifying_key"`
	KeyStatements    []string            `json:"key_statements"`
	IdentityProvider identityEnv         `json:"identity_provider"`
	Settings         settings            `json:"settings"`
	Certificates     map[string][]string `json:"certificates"` // name -> chain, DER in base64, leaf first
}

type identityEnv struct {
	Issuer   string         `json:"issuer"`
	ClientID string         `json:"client_id"`
	Key      map[string]any `json:"key"`
}

// settings are of one verifier; a vector may replace single ones.
type settings struct {
	Now              int64                 `json:"now,omitempty"`
	Target           string                `json:"target,omitempty"`
	RootEvidence     string                `json:"root_evidence,omitempty"`
	RequireUserGrant bool                  `json:"require_user_grant,omitempty"`
	MaxActors        int                   `json:"max_actors,omitempty"`
	MaxSession       int64                 `json:"max_session_seconds,omitempty"`
	Delegations      []delegation          `json:"delegations,omitempty"`
	Revoked          []actor.RevocationKey `json:"revoked,omitempty"`
}

type delegation struct {
	Delegator string `json:"delegator"`
	Delegate  string `json:"delegate"`
}

type credentialFile struct {
	Description string             `json:"description"`
	Vectors     []credentialVector `json:"vectors"`
}

type credentialVector struct {
	Name       string    `json:"name"`
	Rule       string    `json:"rule"`
	Settings   *settings `json:"settings,omitempty"`
	Peer       string    `json:"peer"` // name in certificates; "" for none
	Credential string    `json:"credential"`
	Class      string    `json:"class,omitempty"`
	Hop        *int      `json:"hop,omitempty"`
	Chain      *outcome  `json:"chain,omitempty"`
}

// outcome is what a verifier must find out about a valid credential.
type outcome struct {
	User         actor.SubjectID `json:"user"`
	SID          string          `json:"sid"`
	Txn          string          `json:"txn"`
	RootEvidence string          `json:"root_evidence,omitempty"`
	Hops         []hopOutcome    `json:"hops"`
	LowestGrade  string          `json:"lowest_grade"`
	Expires      int64           `json:"expires"`
	Details      actor.Details   `json:"authorization_details,omitempty"`
	Purpose      string          `json:"purpose"`
	Revocations  []string        `json:"revocation_keys"`
}

type hopOutcome struct {
	ID    string `json:"id"`
	Grade string `json:"grade"`
	JTI   string `json:"jti,omitempty"`
}

func decodeChain(list []string) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for _, s := range list {
		der, err := base64.StdEncoding.DecodeString(s)
		if err != nil {
			return nil, err
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

func decodeJWK(m map[string]any) *ecdsa.PublicKey {
	point := []byte{4}
	for _, name := range []string{"x", "y"} {
		point = append(point, must(base64.RawURLEncoding.DecodeString(m[name].(string)))...)
	}
	return must(ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point))
}

// verifier is built from the environment alone, as another language would.
func (e environment) verifier(t testing.TB, over *settings, forSubjects bool) *actor.Verifier {
	t.Helper()
	s := e.Settings
	if over != nil {
		s = merge(s, *over)
	}
	cfg := actor.Config{Mesh: e.Mesh, RootEvidence: actor.RootEvidence(s.RootEvidence), RequireUserGrant: s.RequireUserGrant,
		MaxActors: s.MaxActors, MaxSession: time.Duration(s.MaxSession) * time.Second, Now: func() time.Time { return time.Unix(s.Now, 0) }}
	cfg.TrustDomain = spiffeid.RequireTrustDomainFromString(e.TrustDomain)
	set := x509bundle.NewSet()
	for td, list := range e.Bundles {
		set.Add(x509bundle.FromX509Authorities(spiffeid.RequireTrustDomainFromString(td), must(decodeChain(list))))
	}
	cfg.Bundles = set
	if !forSubjects {
		cfg.Target = must(spiffeid.FromString(s.Target))
	}
	keys := keySet{}
	for _, raw := range e.KeyStatements {
		k, err := actor.ParseKeyStatement(raw, decodeJWK(e.CertifyingKey), e.Mesh)
		if err != nil {
			t.Fatal(err)
		}
		keys[k.KeyID()] = k
	}
	cfg.TokenKeys = keys
	cfg.IdentityTokens = provider{decodeJWK(e.IdentityProvider.Key)}
	for _, d := range s.Delegations {
		cfg.Delegations = append(cfg.Delegations, actor.DelegationPair{
			Delegator: must(actor.ParsePathPattern(d.Delegator)), Delegate: must(actor.ParsePathPattern(d.Delegate))})
	}
	revoked := revokedSet{}
	for _, k := range s.Revoked {
		revoked[k] = true
	}
	cfg.Revocations = revoked
	v, err := actor.NewVerifier(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func merge(base, over settings) settings {
	b := must(json.Marshal(over))
	if err := json.Unmarshal(b, &base); err != nil {
		panic(err)
	}
	return base
}

func readVectors[T any](t testing.TB, name string) T {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(vectorDir, name))
	if err != nil {
		t.Fatal(err)
	}
	var v T
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return v
}

func chainOutcome(c *actor.Chain) *outcome {
	o := &outcome{User: c.User, SID: c.SID, Txn: c.Txn, RootEvidence: string(c.RootEvidence), LowestGrade: string(c.LowestGrade()),
		Expires: c.Expires.Unix(), Details: c.Details, Purpose: c.Purpose, Hops: hopOutcomes(c.Hops)}
	for _, k := range c.RevocationKeys() {
		o.Revocations = append(o.Revocations, k.String())
	}
	return o
}

func hopOutcomes(hops []actor.Hop) []hopOutcome {
	var out []hopOutcome
	for _, h := range hops {
		one := hopOutcome{ID: h.ID, Grade: string(h.Grade)}
		if h.Grant != nil {
			one.JTI = h.Grant.ID
		}
		out = append(out, one)
	}
	return out
}

// checkRefusal holds an error against the vector.
func checkRefusal(t *testing.T, err error, class string, hop *int) {
	t.Helper()
	if err == nil {
		t.Fatalf("accepted, want %s", class)
	}
	if got := string(actor.ClassOf(err)); got != class {
		t.Fatalf("class %q, want %q: %v", got, class, err)
	}
	var e *actor.Error
	if errors.As(err, &e) && hop != nil && e.Hop != *hop {
		t.Errorf("hop %d, want %d: %v", e.Hop, *hop, err)
	}
}

func TestEveryCredentialVectorIsJudgedAsItSays(t *testing.T) {
	env := readVectors[environment](t, "environment.json")
	invalid := 0
	for _, name := range []string{"credentials-valid.json", "credentials-invalid.json"} {
		for _, vec := range readVectors[credentialFile](t, name).Vectors {
			if vec.Class != "" {
				invalid++
			}
			t.Run(vec.Name, func(t *testing.T) {
				peer, err := decodeChain(env.Certificates[vec.Peer])
				if err != nil {
					t.Fatal(err)
				}
				v := env.verifier(t, vec.Settings, false)
				// Twice: the cache must not change the judgement.
				for range 2 {
					chain, err := v.Verify(t.Context(), peer, vec.Credential)
					if vec.Class != "" {
						checkRefusal(t, err, vec.Class, vec.Hop)
						continue
					}
					if err != nil {
						t.Fatal(err)
					}
					if diff := cmp.Diff(must(json.Marshal(vec.Chain)), must(json.Marshal(chainOutcome(chain)))); diff != "" {
						t.Error(diff)
					}
				}
			})
		}
	}
	if invalid < 80 {
		t.Errorf("%d invalid vectors, want at least 80", invalid)
	}
}

// TestVectorsAreUpToDate holds the files against what makes them; with -update it
// writes them.
func TestVectorsAreUpToDate(t *testing.T) {
	env, valid, invalid := credentialVectors(t)
	narrowing, matching := detailsVectors()
	for name, v := range map[string]any{"environment.json": env, "credentials-valid.json": valid, "credentials-invalid.json": invalid,
		"subjects.json": subjectVectors(t), "narrowing.json": narrowing, "matching.json": matching, "statements.json": statementVectors()} {
		file := filepath.Join(vectorDir, name)
		want := append(must(json.MarshalIndent(v, "", " ")), '\n')
		if *update {
			if err := os.WriteFile(file, want, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := os.ReadFile(file); err != nil || string(got) != string(want) {
			t.Errorf("%s differs from what makes it (%v); run make vectors", name, err)
		}
	}
}
