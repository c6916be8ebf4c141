package supervise_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/internal/supervise"
	"github.com/deputymesh/deputy/internal/testca"
	spawnv1 "github.com/deputymesh/deputy/proto/deputy/spawn/v1"
)

// scripted is an issuer that fails where a test says so. The real one is used wherever it can be.
type scripted struct {
	spawnv1.UnimplementedSpawnServer
	t    *testing.T
	ca   *testca.CA
	id   actor.AgentID
	life time.Duration
	// loseRenewal: the first renewal takes effect, and its answer is lost with the stream.
	loseRenewal bool
	// loseResumes: so many resumes take effect, and their answers are lost.
	loseResumes int
	// refuse is what a resume is answered with, if not nil.
	refuse error
	// forge changes an answer.
	forge func(*spawnv1.AttachResponse)

	mu      sync.Mutex
	key     *ecdsa.PublicKey
	resumes int
	over    chan error // how streams ended
}

func (s *scripted) answer(csr []byte) (*spawnv1.AttachResponse, error) {
	req, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, err
	}
	key, ok := req.PublicKey.(*ecdsa.PublicKey)
	if !ok || req.CheckSignature() != nil {
		return nil, errors.New("bad request")
	}
	s.key = key
	svid := s.ca.SVIDFor(s.id.ID(), keyOf{key}, testca.Validity(time.Now().Add(-time.Second), time.Now().Add(s.life)))
	r := &spawnv1.AttachResponse{SpiffeId: s.id.String(), Svid: [][]byte{svid.Certificates[0].Raw}, Bundle: [][]byte{s.ca.Certificate().Raw}, Grade: "attested"}
	if s.forge != nil {
		s.forge(r)
	}
	return r, nil
}

type keyOf struct{ pub *ecdsa.PublicKey }

func (k keyOf) Public() crypto.PublicKey { return k.pub }
func (keyOf) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("no private key")
}

func (s *scripted) proven(m *spawnv1.AttachRequest) bool {
	d := sha256.Sum256(append([]byte("deputy-svid-renewal-v1"), m.GetCsr()...))
	return ecdsa.VerifyASN1(s.key, d[:], m.GetProof())
}

func (s *scripted) Attach(stream spawnv1.Spawn_AttachServer) error {
	err := s.attach(stream)
	s.over <- err
	return err
}

func (s *scripted) attach(stream spawnv1.Spawn_AttachServer) error {
	for first := true; ; first = false {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		s.mu.Lock()
		r, err := s.handle(m, first)
		s.mu.Unlock()
		if err != nil {
			return err
		}
		if err := stream.Send(r); err != nil {
			return err
		}
	}
}

func (s *scripted) handle(m *spawnv1.AttachRequest, first bool) (*spawnv1.AttachResponse, error) {
	if first && m.GetResume() != "" {
		s.resumes++
		if s.refuse != nil {
			return nil, s.refuse
		}
		if m.GetResume() != s.id.String() || !s.proven(m) {
			return nil, status.Error(codes.PermissionDenied, "the proof isn't the current key's")
		}
	}
	if !first && !s.proven(m) {
		return nil, status.Error(codes.PermissionDenied, "the proof isn't the current key's")
	}
	r, err := s.answer(m.GetCsr())
	if err != nil {
		return nil, err
	}
	if !first && s.loseRenewal {
		s.loseRenewal = false
		return nil, status.Error(codes.Unavailable, "lost")
	}
	if first && m.GetResume() != "" && s.loseResumes > 0 {
		s.loseResumes--
		return nil, status.Error(codes.Unavailable, "lost")
	}
	return r, nil
}

func startScripted(t *testing.T, s *scripted) spawnv1.SpawnClient {
	t.Helper()
	s.t, s.ca, s.over = t, testca.New(t, "corp.test"), make(chan error, 64)
	var err error
	if s.id, err = actor.NewAgentID(s.ca.TrustDomain(), "planner", actor.NewHexID()); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	spawnv1.RegisterSpawnServer(srv, s)
	go srv.Serve(l)
	conn, err := supervise.DialIssuer(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(); srv.Stop() })
	return spawnv1.NewSpawnClient(conn)
}

// An issuer that is killed twice in a row: what took effect of an agent's attempts to resume, it can't know, and it goes on all the same.
func TestResumesWhoseAnswersWereLostAreTakenUpAgain(t *testing.T) {
	s := &scripted{life: 3 * time.Second, loseRenewal: true, loseResumes: 3}
	id, err := supervise.Attach(t.Context(), startScripted(t, s), make([]byte, 32), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer id.Close()
	select {
	case <-id.Changed():
	case <-id.Done():
		t.Fatalf("the identity ended: %v", id.Err())
	case <-time.After(15 * time.Second):
		t.Fatal("no new identity came")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	svid, err := id.GetX509SVID()
	if err != nil || !s.key.Equal(svid.PrivateKey.Public()) {
		t.Errorf("it has another key than the issuer knows: %v", err)
	}
}

func TestRenewalWhoseAnswerWasLostIsTakenUpAgain(t *testing.T) {
	s := &scripted{life: 3 * time.Second, loseRenewal: true}
	rpc := startScripted(t, s)
	id, err := supervise.Attach(t.Context(), rpc, make([]byte, 32), nil)
	if err != nil {
		t.Fatal(err)
	}
	before, _ := id.GetX509SVID()
	select {
	case <-id.Changed():
	case <-id.Done():
		t.Fatalf("the identity ended: %v", id.Err())
	case <-time.After(15 * time.Second):
		t.Fatal("no new identity came")
	}
	after, err := id.GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	if after.ID != before.ID || after.Certificates[0].Equal(before.Certificates[0]) {
		t.Error("the identity was not renewed as itself")
	}
	s.mu.Lock()
	if s.resumes != 2 { // with the old key, which was the current one no more, then with the new one
		t.Errorf("%d resumes", s.resumes)
	}
	s.mu.Unlock()
	for len(s.over) > 0 {
		<-s.over
	}
	id.Close()
	select {
	case err := <-s.over:
		if !errors.Is(err, io.EOF) {
			t.Errorf("the stream ended with %v; an agent that is done says so by half-closing it", err)
		}
	case <-time.After(5 * time.Second):
		t.Error("the stream did not end")
	}
	if _, err := id.GetX509SVID(); err == nil {
		t.Error("a closed identity still gives its SVID")
	}
}

func TestIdentityEndsWhenTheIssuerSaysSo(t *testing.T) {
	s := &scripted{life: 3 * time.Second, loseRenewal: true, refuse: status.Error(codes.NotFound, "no such agent lives")}
	id, err := supervise.Attach(t.Context(), startScripted(t, s), make([]byte, 32), nil)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-id.Done():
	case <-time.After(15 * time.Second):
		t.Fatal("the identity did not end")
	}
	if err := id.Err(); err == nil || !strings.Contains(err.Error(), "no such agent lives") {
		t.Errorf("it ended with %v", err)
	}
	if _, err := id.GetX509SVID(); err == nil {
		t.Error("an ended identity still gives its SVID")
	}
}

func TestForgedAnswersAreRefused(t *testing.T) {
	other := testca.New(t, "corp.test")
	for name, forge := range map[string]func(*spawnv1.AttachResponse){
		"another name":   func(r *spawnv1.AttachResponse) { r.SpiffeId = strings.Replace(r.SpiffeId, "planner", "plotter", 1) },
		"another bundle": func(r *spawnv1.AttachResponse) { r.Bundle = [][]byte{other.Certificate().Raw} },
		"no bundle":      func(r *spawnv1.AttachResponse) { r.Bundle = nil },
		"no certificate": func(r *spawnv1.AttachResponse) { r.Svid = nil },
		"not DER":        func(r *spawnv1.AttachResponse) { r.Svid = [][]byte{{1, 2, 3}} },
	} {
		s := &scripted{life: time.Hour}
		rpc := startScripted(t, s)
		s.forge = forge
		if id, err := supervise.Attach(t.Context(), rpc, make([]byte, 32), nil); err == nil {
			id.Close()
			t.Errorf("%s was taken", name)
		}
	}
	s := &scripted{life: time.Hour}
	rpc := startScripted(t, s)
	s.forge = func(r *spawnv1.AttachResponse) {
		svid := s.ca.SVID(s.id.ID()) // for a key that the issuer made
		r.Svid = [][]byte{svid.Certificates[0].Raw}
	}
	if id, err := supervise.Attach(t.Context(), rpc, make([]byte, 32), nil); err == nil || !strings.Contains(err.Error(), "another key") {
		if err == nil {
			id.Close()
		}
		t.Errorf("an SVID for another key: %v", err)
	}
}
