package sshd

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/deputymesh/deputy/actor"
)

const (
	dialTimeout = 10 * time.Second
	// certificateLife is how long a user certificate is good for; it is used once, at once.
	certificateLife = 2 * time.Minute
	clockSkew       = time.Minute
)

// Upstream says where the target is and how it proves itself.
type Upstream struct {
	// Address is host:port.
	Address string
	// HostName is the principal in the target's host certificate; by default the host of Address.
	HostName string
	// HostKeys are the target's pinned keys, HostCAs those of authorities that sign its host certificates. At least one of either.
	HostKeys, HostCAs []ssh.PublicKey
	// Dial connects to Address; a plain net.Dialer if nil.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Account is an account at the target. It proves itself by a key of its own, or by short certificates of a CA that the target trusts.
type Account struct {
	Name string
	// Key is the account's own key, CA the one that signs certificates for it. Exactly one of them.
	Key, CA ssh.Signer
	// Principals of the certificates; by default the account's name.
	Principals []string
	// Roles of users that may use it; empty: every user, as far as policy goes.
	Roles []string
}

func (a Account) check() error {
	if err := actor.CheckAccount(a.Name); err != nil {
		return err
	}
	if a.Name == AnyAccount {
		return fmt.Errorf("%q stands for the choice by roles and can't be an account", AnyAccount)
	}
	if (a.Key == nil) == (a.CA == nil) {
		return errors.New("either a key or a CA key is expected")
	}
	for _, s := range []ssh.Signer{a.Key, a.CA} {
		if s == nil {
			continue
		}
		if _, certificate := s.PublicKey().(*ssh.Certificate); certificate {
			return errors.New("its key is a certificate")
		}
	}
	if a.Key != nil && a.Principals != nil {
		return errors.New("principals go with a CA key")
	}
	for _, p := range a.Principals {
		if err := actor.CheckAccount(p); err != nil {
			return fmt.Errorf("principals: %w", err)
		}
	}
	return nil
}

// mayBeUsed says whether one of a user's roles may use the account.
func (a Account) mayBeUsed(roles []string) bool {
	return len(a.Roles) == 0 || slices.ContainsFunc(a.Roles, func(r string) bool { return slices.Contains(roles, r) })
}

func (u *Upstream) check() error {
	host, _, err := net.SplitHostPort(u.Address)
	if err != nil || host == "" {
		return fmt.Errorf("the target's address %q: want host:port", u.Address)
	}
	if u.HostName == "" {
		u.HostName = host
	}
	if len(u.HostKeys) == 0 && len(u.HostCAs) == 0 {
		return errors.New("neither a host key nor a host CA to verify the target with")
	}
	for _, k := range slices.Concat(u.HostKeys, u.HostCAs) {
		if _, certificate := k.(*ssh.Certificate); certificate {
			return errors.New("a certificate stands where a key is expected")
		}
	}
	return nil
}

// verify is the [ssh.HostKeyCallback].
func (u *Upstream) verify(now func() time.Time) ssh.HostKeyCallback {
	checker := &ssh.CertChecker{
		Clock: now,
		IsHostAuthority: func(signer ssh.PublicKey, _ string) bool {
			// What signs must be a key. One that is a certificate itself is never taken for the key inside it.
			_, certificate := signer.(*ssh.Certificate)
			return !certificate && knows(u.HostCAs, signer)
		},
	}
	return func(_ string, remote net.Addr, key ssh.PublicKey) error {
		if _, certificate := key.(*ssh.Certificate); certificate {
			return checker.CheckHostKey(net.JoinHostPort(u.HostName, "22"), remote, key)
		}
		if !knows(u.HostKeys, key) {
			return fmt.Errorf("the target's host key %s is none of those that are pinned", ssh.FingerprintSHA256(key))
		}
		return nil
	}
}

func knows(list []ssh.PublicKey, key ssh.PublicKey) bool {
	raw := key.Marshal()
	return slices.ContainsFunc(list, func(k ssh.PublicKey) bool { return bytes.Equal(k.Marshal(), raw) })
}

// algorithms are those of host keys that could be accepted, so that a target with several keys shows the right one.
func (u *Upstream) algorithms() []string {
	var out []string
	if len(u.HostCAs) > 0 {
		out = append(out, ssh.CertAlgoED25519v01, ssh.CertAlgoECDSA256v01, ssh.CertAlgoECDSA384v01, ssh.CertAlgoECDSA521v01,
			ssh.CertAlgoRSASHA512v01, ssh.CertAlgoRSASHA256v01)
	}
	for _, k := range u.HostKeys {
		if k.Type() == ssh.KeyAlgoRSA {
			out = append(out, ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256)
		} else if !slices.Contains(out, k.Type()) {
			out = append(out, k.Type())
		}
	}
	return out
}

// signer is what an account proves itself with for one session.
func (e *Engine) signer(a Account, s Session) (ssh.Signer, error) {
	if a.Key != nil {
		return a.Key, nil
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making a key for a certificate: %w", err)
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		return nil, fmt.Errorf("making a key for a certificate: %w", err)
	}
	var serial [8]byte
	if _, err := rand.Read(serial[:]); err != nil {
		return nil, fmt.Errorf("making a certificate: %w", err)
	}
	principals := a.Principals
	if len(principals) == 0 {
		principals = []string{a.Name}
	}
	now := e.cfg.Now()
	cert := &ssh.Certificate{
		Key: key, Serial: binary.BigEndian.Uint64(serial[:]), CertType: ssh.UserCert, KeyId: keyID(s), ValidPrincipals: principals,
		ValidAfter: uint64(now.Add(-clockSkew).Unix()), ValidBefore: uint64(now.Add(certificateLife).Unix()),
		Permissions: ssh.Permissions{Extensions: map[string]string{}},
	}
	if !e.cfg.Restricted {
		cert.Extensions["permit-pty"] = ""
	}
	if e.cfg.Forwarding {
		cert.Extensions["permit-port-forwarding"] = ""
	}
	if err := cert.SignCert(rand.Reader, a.CA); err != nil {
		return nil, fmt.Errorf("signing a certificate: %w", err)
	}
	inner, err := ssh.NewSignerFromKey(private)
	if err != nil {
		return nil, fmt.Errorf("making a key for a certificate: %w", err)
	}
	return ssh.NewCertSigner(cert, inner)
}

// keyID is what the target's own log says of who came: session and task, by which the records are found, the
// digest of the credential that they rest on, and the agent.
func keyID(s Session) string {
	id := "deputy session=" + s.ID()
	if c := s.Chain(); c != nil {
		id += " task=" + c.Txn + " chain=" + c.Digest + " agent=" + c.Leaf().ID
	}
	return clip(id, 512)
}

// upstream is the connection to the target, after authentication.
type upstream struct {
	conn     ssh.Conn
	channels <-chan ssh.NewChannel
	requests <-chan *ssh.Request
}

// dial connects to the target as an account.
func (e *Engine) dial(ctx context.Context, a Account, s Session) (*upstream, error) {
	signer, err := e.signer(a, s)
	if err != nil {
		return nil, err
	}
	if e.broken.target.Tokens() < 1 {
		return nil, fmt.Errorf("connecting to %s: it has broken too many handshakes; it is tried again in a minute", e.name)
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	raw, err := e.cfg.Upstream.Dial(ctx, "tcp", e.cfg.Upstream.Address)
	if err != nil {
		return nil, fmt.Errorf("connecting to %s: %w", e.name, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = raw.SetDeadline(time.Now()) })
	defer stop()
	start := newBrief(raw, startupBytes)
	conn, channels, requests, err := ssh.NewClientConn(start, e.cfg.Upstream.Address, &ssh.ClientConfig{
		User: a.Name, Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)}, ClientVersion: "SSH-2.0-Deputy",
		HostKeyCallback: e.cfg.Upstream.verify(e.cfg.Now), HostKeyAlgorithms: e.cfg.Upstream.algorithms(),
	})
	if err != nil {
		if start.leaves() {
			e.broken.target.Allow()
		}
		return nil, fmt.Errorf("connecting to %s as %s: %w", e.name, a.Name, err)
	}
	start.begun.Store(true)
	up := &upstream{conn, channels, requests}
	if !stop() {
		up.abandon()
		return nil, fmt.Errorf("connecting to %s: %w", e.name, context.Cause(ctx))
	}
	return up, nil
}

// abandon closes a connection that no agent has come to.
func (u *upstream) abandon() { abandon(u.conn, u.channels, u.requests) }
