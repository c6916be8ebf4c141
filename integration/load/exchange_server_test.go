//go:build bench

package load_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/broker"
	"github.com/deputymesh/deputy/broker/claims"
	"github.com/deputymesh/deputy/broker/sqlite"
	"github.com/deputymesh/deputy/broker/tokenapi"
	"github.com/deputymesh/deputy/internal/idp"
	"github.com/deputymesh/deputy/internal/target"
	spawnv1 "github.com/deputymesh/deputy/proto/deputy/spawn/v1"
)

// exchangeArg makes this binary a server of exchanges.
const exchangeArg = "exchange"

const (
	kindBroker     = "broker"
	kindBareEvery  = "bare, every signature"
	kindBareCached = "bare, signatures known"
)

type exchangeConfig struct {
	Kind, Listen, Dir, Provider, Target, Statement string
	SVID, SVIDKey, Bundle, ProviderCert            []byte // PEM
	TokenKey, Certifying, ProviderKey              []byte // DER
}

func marshalKey(k *ecdsa.PrivateKey) ([]byte, error)   { return x509.MarshalPKCS8PrivateKey(k) }
func marshalPublic(k *ecdsa.PublicKey) ([]byte, error) { return x509.MarshalPKIXPublicKey(k) }

// exchangeServer is an exchangeConfig, read.
type exchangeServer struct {
	exchangeConfig
	svid                    *x509svid.SVID
	bundle                  *x509bundle.Bundle
	tokenKey                *ecdsa.PrivateKey
	certifying, providerKey *ecdsa.PublicKey
	signIns                 sync.Map
}

func exchangeMain() error {
	var s exchangeServer
	if err := json.NewDecoder(os.Stdin).Decode(&s.exchangeConfig); err != nil {
		return err
	}
	if err := serveProfiles(); err != nil {
		return err
	}
	var err error
	if s.svid, err = x509svid.Parse(s.SVID, s.SVIDKey); err != nil {
		return err
	}
	if s.bundle, err = x509bundle.Parse(s.svid.ID.TrustDomain(), s.Bundle); err != nil {
		return err
	}
	key, err1 := x509.ParsePKCS8PrivateKey(s.exchangeConfig.TokenKey)
	certifying, err2 := x509.ParsePKIXPublicKey(s.exchangeConfig.Certifying)
	provider, err3 := x509.ParsePKIXPublicKey(s.exchangeConfig.ProviderKey)
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	s.tokenKey, s.certifying, s.providerKey = key.(*ecdsa.PrivateKey), certifying.(*ecdsa.PublicKey), provider.(*ecdsa.PublicKey)
	if s.Kind == kindBroker {
		return s.serveBroker()
	}
	return s.serveBare()
}

// serveBroker runs the broker with its database and log on disk, and with an issuer that has nothing to say.
func (s *exchangeServer) serveBroker() error {
	ctx := context.Background()
	socket := filepath.Join(s.Dir, "issuer.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	issuer := grpc.NewServer()
	spawnv1.RegisterSpawnServer(issuer, quietIssuer{})
	go func() { _ = issuer.Serve(l) }()
	store, err := sqlite.Open(filepath.Join(s.Dir, "broker.db"))
	if err != nil {
		return err
	}
	logKey, err := audit.GenerateKey(rand.Reader, flowDomain+"/broker")
	if err != nil {
		return err
	}
	log, err := audit.Open(audit.Config{Dir: filepath.Join(s.Dir, "audit"), Source: "spiffe://" + flowDomain + "/deputy/broker", Key: logKey})
	if err != nil {
		return err
	}
	name, err := target.ParseName(s.Target)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(s.ProviderCert)
	b, err := broker.New(ctx, broker.Config{
		TrustDomain: s.svid.ID.TrustDomain(), Mesh: flowMesh, SVIDs: s.svid, Bundles: s.bundle, IssuerSocket: socket, Store: store, Log: log,
		Logger: slog.New(slog.DiscardHandler), TokenKey: s.tokenKey, TokenKeyStatement: s.Statement, CertifyingKey: s.certifying,
		WebCertificate: tls.Certificate{Certificate: [][]byte{s.svid.Certificates[0].Raw}, PrivateKey: s.svid.PrivateKey},
		Providers: []idp.Provider{{Issuer: s.Provider, ClientID: "deputy", Algorithms: []string{"ES256"},
			Client: &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}}},
		Identity: claims.Mappings{s.Provider: {Claim: "groups", Roles: map[string]string{"bench": "bench"}}},
		Targets:  map[target.Name]tokenapi.Target{name: {Kind: target.Postgres}},
		Proxies:  map[string][]target.Name{"orders": {name}},
	})
	if err != nil {
		return err
	}
	// The mesh listener opens last: who can connect finds a broker that is ready.
	var listeners broker.Listeners
	if listeners.Feed, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		return err
	}
	if listeners.Web, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		return err
	}
	late := &lateListener{address: s.Listen, ready: b.Ready}
	listeners.Mesh = late
	return b.Serve(ctx, listeners)
}

// lateListener listens once somebody is ready.
type lateListener struct {
	net.Listener
	address string
	ready   func() error
}

func (l *lateListener) Accept() (net.Conn, error) {
	if l.Listener == nil {
		for l.ready() != nil {
			time.Sleep(5 * time.Millisecond)
		}
		inner, err := net.Listen("tcp", l.address)
		if err != nil {
			return nil, err
		}
		l.Listener = inner
	}
	return l.Listener.Accept()
}

func (l *lateListener) Addr() net.Addr { return &net.TCPAddr{} }
func (l *lateListener) Close() error   { return nil }

type quietIssuer struct {
	spawnv1.UnimplementedSpawnServer
}

func (quietIssuer) Ended(_ *spawnv1.EndedRequest, s grpc.ServerStreamingServer[spawnv1.EndedAgent]) error {
	if err := s.Send(&spawnv1.EndedAgent{Live: true}); err != nil {
		return err
	}
	<-s.Context().Done()
	return nil
}

// serveBare is the least that an exchange can cost: mTLS, the form, the presenter's path, the signatures and paths of the chain,
// one signature of its own, and a record that is durable before the answer.
func (s *exchangeServer) serveBare() error {
	roots := x509.NewCertPool()
	roots.AddCert(s.bundle.X509Authorities()[0])
	log, err := openCommits(filepath.Join(s.Dir, "records"))
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /jwks", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("POST /token", func(w http.ResponseWriter, r *http.Request) {
		if err := r.ParseForm(); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		parts := strings.Split(r.PostForm.Get("subject_token"), "~")
		read, err := s.verifyBare(roots, r.TLS.PeerCertificates[0], parts)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		token, err := s.signBare(read)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		if err := log.append([]byte(r.PostForm.Get("resource") + token)); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"access_token": token, "token_type": "Bearer", "expires_in": 300})
	})
	cfg := tlsconfig.MTLSServerConfig(s.svid, s.bundle, tlsconfig.AuthorizeMemberOf(s.svid.ID.TrustDomain()))
	cfg.MinVersion, cfg.SessionTicketsDisabled = tls.VersionTLS13, true
	l, err := net.Listen("tcp", s.Listen)
	if err != nil {
		return err
	}
	return (&http.Server{Handler: mux, TLSConfig: cfg}).ServeTLS(l, "", "")
}

// verifyBare reads every statement, and verifies what its kind says.
func (s *exchangeServer) verifyBare(roots *x509.CertPool, peer *x509.Certificate, parts []string) (claims map[string]any, err error) {
	path := func(c *x509.Certificate) error {
		_, err := c.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
		return err
	}
	if err := path(peer); err != nil {
		return nil, err
	}
	for i, part := range parts {
		st, err := readBare(part)
		if err != nil {
			return nil, err
		}
		if i == 0 {
			claims = st.claims
		}
		if s.Kind == kindBareCached {
			continue
		}
		if i == len(parts)-1 {
			// It remembers the sign-in, as a broker does: a user's agents all carry the same ID token.
			if _, known := s.signIns.Load(st.digest); known {
				continue
			}
			if !st.good(s.providerKey) {
				return nil, errors.New("the signature of the ID token is bad")
			}
			s.signIns.Store(st.digest, true)
			continue
		}
		key, err := st.key(path)
		if err != nil {
			return nil, err
		}
		if !st.good(key) {
			return nil, fmt.Errorf("the signature of part %d is bad", i)
		}
	}
	return claims, nil
}

func (s *exchangeServer) signBare(claims map[string]any) (string, error) {
	claims["iat"], claims["jti"] = time.Now().Unix(), actor.NewHexID()
	payload, err := json.Marshal(claims)
	if err != nil {
		return "", err
	}
	signed := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"ES256","typ":"at+jwt","kid":"k"}`)) + "." + base64.RawURLEncoding.EncodeToString(payload)
	digest := sha256.Sum256([]byte(signed))
	r, v, err := ecdsa.Sign(rand.Reader, s.tokenKey, digest[:])
	if err != nil {
		return "", err
	}
	sig := make([]byte, 64)
	r.FillBytes(sig[:32])
	v.FillBytes(sig[32:])
	return signed + "." + base64.RawURLEncoding.EncodeToString(sig), nil
}

// commits is a file of records that are written in groups, one fdatasync each.
type commits struct {
	file  *os.File
	queue chan commit
}

type commit struct {
	record []byte
	done   chan error
}

const commitsSize = 64 << 20

func openCommits(path string) (*commits, error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	zero := make([]byte, 1<<20)
	for at := int64(0); at < commitsSize; at += int64(len(zero)) {
		if _, err := f.WriteAt(zero, at); err != nil {
			return nil, err
		}
	}
	if err := f.Sync(); err != nil {
		return nil, err
	}
	c := &commits{file: f, queue: make(chan commit, 1024)}
	go c.run()
	return c, nil
}

func (c *commits) append(record []byte) error {
	done := make(chan error, 1)
	c.queue <- commit{record, done}
	return <-done
}

func (c *commits) run() {
	at := int64(0)
	for first := range c.queue {
		group, buf := []commit{first}, append([]byte(nil), first.record...)
	more:
		for {
			select {
			case next := <-c.queue:
				group, buf = append(group, next), append(buf, next.record...)
			default:
				break more
			}
		}
		if at+int64(len(buf)) > commitsSize {
			at = 0
		}
		_, err := c.file.WriteAt(buf, at)
		if err == nil {
			err = syscall.Fdatasync(int(c.file.Fd()))
		}
		at += int64(len(buf)+4095) &^ 4095
		for _, g := range group {
			g.done <- err
		}
	}
}
