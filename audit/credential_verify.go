package audit

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	jose "github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/internal/strictjson"
)

// credentials repeats the verification of every credential that records rest on.
type credentials struct {
	keys    *Keys
	kept    map[evidenceName][]byte
	results map[Digest]*credentialResult
	report  CredentialReport
}

// evidenceName: the same bytes may be kept as evidence of several kinds.
type evidenceName struct {
	digest Digest
	kind   string
}

type credentialResult struct {
	chain *actor.Chain
	err   error
}

func newCredentials(keys *Keys) *credentials {
	return &credentials{keys: keys, kept: make(map[evidenceName][]byte), results: make(map[Digest]*credentialResult)}
}

func (c *credentials) keep(e *Evidence) { c.kept[evidenceName{e.Digest, e.Kind}] = e.Data }

// check holds a chain against the credential that was kept for it, where the chain is stated, and a decision against the
// end of its chain.
func (c *credentials) check(r *Record) error {
	if stated, ok := r.Event.(*ChainStated); ok {
		return c.stated(stated.Chain)
	}
	if r.Chain == nil {
		return nil
	}
	c.report.Records++
	if r.Chain.Verification == "" {
		c.report.Without++
		return nil
	}
	if d, isDecision := r.Event.(*Decision); isDecision && d.Effect == Allow && r.Time.After(r.Chain.Expires.Add(actor.Skew)) {
		return fmt.Errorf("allowed at %s on a chain that ended at %s", r.Time.Format(time.RFC3339), r.Chain.Expires.Format(time.RFC3339))
	}
	return nil
}

func (c *credentials) stated(chain *Chain) error {
	if chain.Presented != "" {
		if _, err := c.part(chain.Presented, KindSubject); err != nil {
			return err
		}
	}
	if chain.Verification == "" {
		return nil
	}
	return c.compare(chain)
}

func (c *credentials) compare(chain *Chain) error {
	res, ok := c.results[chain.Verification]
	if !ok {
		res = new(credentialResult)
		res.chain, res.err = c.verify(chain.Verification)
		c.results[chain.Verification] = res
		if res.err == nil {
			c.report.Verified++
		}
	}
	if res.err != nil {
		return res.err
	}
	want, err1 := withoutWords(FromChain(res.chain, chain.Verification))
	got, err2 := withoutWords(chain)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	if !bytes.Equal(want, got) {
		return errors.New("the chain on the record isn't the one that its credential bears out")
	}
	return nil
}

// withoutWords is a chain's encoding without what is only said for people, which later versions may say differently.
func withoutWords(c *Chain) ([]byte, error) {
	type plain Chain
	raw, err := compactJSON((*plain)(c))
	if err != nil {
		return nil, err
	}
	out := new(plain)
	if err := strictjson.Unmarshal(raw, out); err != nil {
		return nil, err
	}
	for _, h := range out.Hops {
		if h.Grant != nil {
			h.Grant.Narrowed = nil
		}
	}
	return compactJSON(out)
}

func (c *credentials) part(d Digest, kind string) ([]byte, error) {
	data, ok := c.kept[evidenceName{d, kind}]
	if !ok {
		return nil, fmt.Errorf("no evidence %s of kind %s stands before it", d, kind)
	}
	return data, nil
}

func (c *credentials) certificates(list []Digest) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for _, d := range list {
		der, err := c.part(d, KindCertificate)
		if err != nil {
			return nil, err
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("evidence %s: %w", d, err)
		}
		out = append(out, cert)
	}
	return out, nil
}

// verify repeats one verification, as of the time when the proxy made it, on the operator's keys.
func (c *credentials) verify(digest Digest) (*actor.Chain, error) {
	data, err := c.part(digest, KindVerification)
	if err != nil {
		return nil, err
	}
	var in credentialInput
	if err := strictjson.Unmarshal(data, &in); err != nil {
		return nil, fmt.Errorf("evidence %s: %w", digest, err)
	}
	credential, err := c.part(in.Credential, KindCredential)
	if err != nil {
		return nil, err
	}
	peer, err := c.certificates(in.Peer)
	if err != nil {
		return nil, err
	}
	statement, err := c.part(in.KeyStatement, KindKeyStatement)
	if err != nil {
		return nil, err
	}
	if in.Mesh != c.keys.Mesh || in.TrustDomain != c.keys.TrustDomain {
		return nil, fmt.Errorf("verified for the mesh %q in %q; the list of keys is for %q in %q", in.Mesh, in.TrustDomain, c.keys.Mesh, c.keys.TrustDomain)
	}
	td, err := spiffeid.TrustDomainFromString(in.TrustDomain)
	if err != nil {
		return nil, fmt.Errorf("evidence %s: %w", digest, err)
	}
	bundle, err := c.bundle(td, in.Authorities)
	if err != nil {
		return nil, err
	}
	keys, err := c.tokenKeys(string(statement), in.Mesh)
	if err != nil {
		return nil, err
	}
	target, err := spiffeid.FromString(in.Target)
	if err != nil {
		return nil, fmt.Errorf("evidence %s: %w", digest, err)
	}
	cfg := actor.Config{
		TrustDomain: td, Bundles: bundle, Target: target, Mesh: in.Mesh, TokenKeys: keys,
		RootEvidence: actor.RootEvidence(in.RootEvidence), RequireUserGrant: in.RequireUserGrant,
		Revocations: noRevocations{}, MaxActors: in.MaxActors, MaxSession: time.Duration(in.MaxSession) * time.Microsecond,
		Now: func() time.Time { return in.VerifiedAt },
	}
	for _, d := range in.Delegations {
		delegator, err1 := actor.ParsePathPattern(d.Delegator)
		delegate, err2 := actor.ParsePathPattern(d.Delegate)
		if err := errors.Join(err1, err2); err != nil {
			return nil, fmt.Errorf("evidence %s: %w", digest, err)
		}
		cfg.Delegations = append(cfg.Delegations, actor.DelegationPair{Delegator: delegator, Delegate: delegate})
	}
	if in.IdentityKeys != "" {
		if cfg.IdentityTokens, err = c.identityTokens(&in); err != nil {
			return nil, err
		}
	}
	v, err := actor.NewVerifier(cfg)
	if err != nil {
		return nil, fmt.Errorf("evidence %s: %w", digest, err)
	}
	chain, err := v.Verify(context.Background(), peer, string(credential))
	if err != nil {
		return nil, fmt.Errorf("the credential %s doesn't verify: %w", in.Credential, err)
	}
	return chain, nil
}

// bundle takes the authorities that the proxy had, and demands each of them on the operator's list.
func (c *credentials) bundle(td spiffeid.TrustDomain, list []Digest) (x509bundle.Source, error) {
	authorities, err := c.certificates(list)
	if err != nil {
		return nil, err
	}
	for _, a := range authorities {
		if !slices.ContainsFunc(c.keys.Authorities, a.Equal) {
			return nil, fmt.Errorf("the trust bundle of the proxy held an authority that isn't on the list of keys: %s, serial %x", a.Subject, a.SerialNumber)
		}
	}
	return x509bundle.FromX509Authorities(td, authorities), nil
}

func (c *credentials) tokenKeys(statement, mesh string) (actor.TokenKeys, error) {
	var errs []error
	for _, certifying := range c.keys.CertifyingKeys {
		k, err := actor.ParseKeyStatement(statement, certifying, mesh)
		if err == nil {
			return oneTokenKey{k}, nil
		}
		errs = append(errs, err)
	}
	return nil, fmt.Errorf("no certifying key on the list vouches for the token key: %w", errors.Join(errs...))
}

type oneTokenKey struct{ k actor.KeyStatement }

func (o oneTokenKey) TokenKey(kid string) (actor.KeyStatement, error) {
	if kid != o.k.KeyID() {
		return actor.KeyStatement{}, fmt.Errorf("the token is signed by another key than the one that was kept")
	}
	return o.k, nil
}

// noRevocations: a revocation that came later doesn't make an old signature bad. That revoked chains were refused is in the records.
type noRevocations struct{}

func (noRevocations) Check([]actor.RevocationKey) error { return nil }

// identityTokens takes a provider's keys from the operator's list, or from the log where the list has none.
func (c *credentials) identityTokens(in *credentialInput) (actor.IdentityTokens, error) {
	recorded, err := c.part(in.IdentityKeys, KindIdentityKeys)
	if err != nil {
		return nil, err
	}
	set, err := parseJWKS(recorded)
	if err != nil {
		return nil, err
	}
	return &offlineTokens{audiences: in.Audiences, recorded: set, c: c}, nil
}

type offlineTokens struct {
	audiences []string
	recorded  *jose.JSONWebKeySet
	c         *credentials
}

var identityAlgorithms = []jose.SignatureAlgorithm{jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512, jose.ES256, jose.ES384, jose.ES512, jose.EdDSA}

// VerifyIDToken verifies signature, issuer and audience of an ID token offline.
func (o *offlineTokens) VerifyIDToken(_ context.Context, raw string) (actor.IdentityClaims, error) {
	var none actor.IdentityClaims
	jws, err := jose.ParseSignedCompact(raw, identityAlgorithms)
	if err != nil || len(jws.Signatures) != 1 {
		return none, errors.New("the ID token isn't a JWS with one signature")
	}
	token, err := actor.ParseIDToken(raw)
	if err != nil {
		return none, fmt.Errorf("the ID token: %w", err)
	}
	claims := token.Claims
	i := slices.IndexFunc(o.c.keys.IdentityProviders, func(p IdentityProvider) bool { return p.Issuer == claims.Issuer })
	if i < 0 {
		return none, fmt.Errorf("the identity provider %q isn't on the list of keys", claims.Issuer)
	}
	provider, set := o.c.keys.IdentityProviders[i], o.recorded
	if provider.Keys != nil {
		if set, err = parseJWKS(provider.Keys); err != nil {
			return none, err
		}
	} else {
		o.c.report.RecordedKeys++
	}
	if !verifiedByAny(jws, set) {
		return none, errors.New("no key of the identity provider verifies the ID token")
	}
	allowed := provider.Audiences
	if len(allowed) == 0 {
		allowed = o.audiences
	}
	if !token.IsFor(allowed) {
		return none, errors.New("the ID token is for another audience")
	}
	return claims, nil
}

func verifiedByAny(jws *jose.JSONWebSignature, set *jose.JSONWebKeySet) bool {
	kid, alg := jws.Signatures[0].Header.KeyID, jws.Signatures[0].Header.Algorithm
	for _, k := range set.Keys {
		if k.Use != "" && k.Use != "sig" || k.Algorithm != "" && k.Algorithm != alg {
			continue
		}
		if kid != "" && k.KeyID != "" && k.KeyID != kid || !k.IsPublic() {
			continue
		}
		if _, symmetric := k.Key.([]byte); symmetric {
			continue
		}
		if ec, ok := k.Key.(*ecdsa.PublicKey); ok && ec == nil {
			continue
		}
		if _, err := jws.Verify(k.Key); err == nil {
			return true
		}
	}
	return false
}
