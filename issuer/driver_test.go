package issuer_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/deputymesh/deputy/internal/supervise/kernel"
	"github.com/deputymesh/deputy/issuer/spawn"
	spawnv1 "github.com/deputymesh/deputy/proto/deputy/spawn/v1"
)

// The test binary is its own child: a driver is a real process that does what the test tells it over a control socket, so
// that the kernel's view of it is real. Its name on the control socket is its token.
const (
	controlVar = "DEPUTY_TEST_CONTROL"
	tokenVar   = "DEPUTY_TEST_TOKEN"
	issuerVar  = "DEPUTY_TEST_ISSUER"
	forkVar    = "DEPUTY_TEST_FORK" // start the driver and leave it alone
)

func TestMain(m *testing.M) {
	if token := os.Getenv(tokenVar); token != "" {
		if err := drive(token); err != nil {
			fmt.Fprintf(os.Stderr, "driver %s: %v\n", token, err)
			os.Exit(3)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// command is what a driver is told; result what it answers.
type command struct {
	Op      string   `json:"op"`
	Stream  string   `json:"stream,omitempty"`
	Name    string   `json:"name,omitempty"`
	Isolate bool     `json:"isolate,omitempty"`
	Ticket  []byte   `json:"ticket,omitempty"`
	ID      string   `json:"id,omitempty"`
	IDs     []string `json:"ids,omitempty"`
	Relayed bool     `json:"relayed,omitempty"`
	PID     int      `json:"pid,omitempty"`
	Start   uint64   `json:"start,omitempty"`
	After   uint64   `json:"after,omitempty"`
	Unknown bool     `json:"unknown,omitempty"` // add an unknown field
	// Key: "" a fresh one; "same" the current one of the stream; or the name of another stream.
	Key string `json:"key,omitempty"`
	// Proof: "" by the stream's current key; "none"; "fresh": by the new key; "first": by the stream's first key; "other": over other bytes.
	Proof string `json:"proof,omitempty"`
	CSR   []byte `json:"csr,omitempty"` // instead of a good one

	Token  string `json:"token,omitempty"` // of a driver to start
	UID    uint32 `json:"uid,omitempty"`
	GID    uint32 `json:"gid,omitempty"`
	SetIDs bool   `json:"set_ids,omitempty"`
	Orphan bool   `json:"orphan,omitempty"` // by a double fork, in a session of its own
	UserNS bool   `json:"user_ns,omitempty"`
	Gains  bool   `json:"gains,omitempty"`  // from set-uid programs, although it gets other ids
	Marked bool   `json:"marked,omitempty"` // as a supervisor marks its program
	Cgroup string `json:"cgroup,omitempty"`
	Header string `json:"header,omitempty"`

	Audience []string `json:"audience,omitempty"`
	JWT      string   `json:"jwt,omitempty"`
}

type result struct {
	Code   string        `json:"code"` // of gRPC
	Text   string        `json:"text,omitempty"`
	PID    int           `json:"pid,omitempty"`
	Start  uint64        `json:"start,omitempty"`
	ID     string        `json:"id,omitempty"`
	Ticket []byte        `json:"ticket,omitempty"`
	UID    uint32        `json:"uid,omitempty"`
	Grade  string        `json:"grade,omitempty"`
	SVID   []byte        `json:"svid,omitempty"`
	Super  bool          `json:"super,omitempty"`
	Ended  []endedNotice `json:"ended,omitempty"`
	IDs    []string      `json:"ids,omitempty"`
	Tokens []string      `json:"tokens,omitempty"`
	Count  int           `json:"count,omitempty"`
}

type endedNotice struct {
	Revision uint64
	ID       string
	Reason   string
	Live     bool
}

type attachment struct {
	stream  spawnv1.Spawn_AttachClient
	cancel  context.CancelFunc
	id      string
	key     *ecdsa.PrivateKey
	first   *ecdsa.PrivateKey
	pending *ecdsa.PrivateKey
}

type driver struct {
	rpc     spawnv1.SpawnClient
	api     workload.SpiffeWorkloadAPIClient
	streams map[string]*attachment
	ended   spawnv1.Spawn_EndedClient
}

func drive(token string) error {
	if os.Getenv(forkVar) != "" {
		// The middle of a double fork: start the real one, in a session of its own, and be gone.
		cmd := exec.Command(os.Args[0])
		cmd.Env = without(os.Environ(), forkVar)
		cmd.Stderr = os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		return cmd.Start()
	}
	control, err := net.Dial("unix", os.Getenv(controlVar))
	if err != nil {
		return err
	}
	conn, err := grpc.NewClient("unix:"+os.Getenv(issuerVar), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	d := &driver{rpc: spawnv1.NewSpawnClient(conn), api: workload.NewSpiffeWorkloadAPIClient(conn), streams: map[string]*attachment{}}
	enc, dec := json.NewEncoder(control), json.NewDecoder(control)
	if err := enc.Encode(token); err != nil {
		return err
	}
	for {
		var c command
		if err := dec.Decode(&c); errors.Is(err, io.EOF) {
			return nil // the test is over
		} else if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		r, err := d.do(ctx, c)
		cancel()
		r.Code, r.Text = status.Code(err).String(), status.Convert(err).Message()
		if err := enc.Encode(r); err != nil {
			return err
		}
	}
}

func without(env []string, name string) (out []string) {
	for _, e := range env {
		if !strings.HasPrefix(e, name+"=") {
			out = append(out, e)
		}
	}
	return out
}

func (d *driver) do(ctx context.Context, c command) (result, error) {
	switch c.Op {
	case "who":
		start, err := startTime(os.Getpid())
		return result{PID: os.Getpid(), Start: start}, err
	case "subreaper":
		return result{}, unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
	case "start":
		return start(c)
	case "register":
		req := &spawnv1.RegisterRequest{Name: c.Name, Isolate: c.Isolate}
		spoil(req, c.Unknown)
		r, err := d.rpc.Register(ctx, req)
		return result{ID: r.GetSpiffeId(), Ticket: r.GetTicket()}, err
	case "claim":
		r, err := d.rpc.Claim(ctx, &spawnv1.ClaimRequest{Ticket: c.Ticket})
		return result{ID: r.GetSpiffeId(), UID: r.GetUid()}, err
	case "locate":
		r, err := d.rpc.Locate(ctx, &spawnv1.LocateRequest{Pid: int32(c.PID), StartTime: c.Start})
		return result{ID: r.GetAgentId(), Super: r.GetSupervisor()}, err
	case "attach":
		return d.attach(c)
	case "renew":
		return d.renew(c)
	case "break":
		d.streams[c.Stream].cancel()
		return result{}, nil
	case "done":
		return result{}, d.streams[c.Stream].stream.CloseSend()
	case "wait":
		_, err := d.streams[c.Stream].stream.Recv()
		if errors.Is(err, io.EOF) {
			err = nil
		}
		return result{}, err
	case "ended":
		return d.hear(c)
	case "revoke":
		req := &spawnv1.RevokeRequest{SpiffeId: c.IDs}
		spoil(req, c.Unknown)
		_, err := d.rpc.Revoke(ctx, req)
		return result{}, err
	case "fetch":
		return d.fetch(ctx, c)
	case "bundles":
		stream, err := d.api.FetchX509Bundles(metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true"), &workload.X509BundlesRequest{})
		if err != nil {
			return result{}, err
		}
		m, err := stream.Recv()
		return result{Count: len(m.GetBundles())}, err
	case "jwt":
		m, err := d.api.FetchJWTSVID(withHeader(ctx, c), &workload.JWTSVIDRequest{Audience: c.Audience, SpiffeId: c.ID})
		var r result
		for _, s := range m.GetSvids() {
			r.IDs, r.Tokens = append(r.IDs, s.GetSpiffeId()), append(r.Tokens, s.GetSvid())
		}
		return r, err
	case "jwtbundles":
		stream, err := d.api.FetchJWTBundles(withHeader(ctx, c), &workload.JWTBundlesRequest{})
		if err != nil {
			return result{}, err
		}
		m, err := stream.Recv()
		var r result
		for id, jwks := range m.GetBundles() {
			r.IDs, r.Tokens = append(r.IDs, id), append(r.Tokens, string(jwks))
		}
		return r, err
	case "validate":
		r, err := d.api.ValidateJWTSVID(withHeader(ctx, c), &workload.ValidateJWTSVIDRequest{Audience: c.Name, Svid: c.JWT})
		return result{ID: r.GetSpiffeId(), Count: len(r.GetClaims().GetFields())}, err
	}
	return result{}, fmt.Errorf("no such op %q", c.Op)
}

func spoil(m proto.Message, unknown bool) {
	if unknown {
		m.ProtoReflect().SetUnknown([]byte{0xf8, 0x07, 0x01}) // field 127, varint 1
	}
}

func start(c command) (result, error) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(without(os.Environ(), tokenVar), tokenVar+"="+c.Token)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if c.Orphan {
		cmd.Env = append(cmd.Env, forkVar+"=1")
	}
	if c.SetIDs {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: c.UID, Gid: c.GID, Groups: []uint32{}}
	}
	if c.UserNS {
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: int(c.UID), HostID: int(c.UID), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: int(c.GID), HostID: int(c.GID), Size: 1}}
	}
	if c.Cgroup != "" {
		dir, err := os.Open(c.Cgroup)
		if err != nil {
			return result{}, err
		}
		defer dir.Close()
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(dir.Fd())
	}
	started := make(chan error, 1)
	kernel.OnThread(func() {
		if c.Marked {
			if _, err := kernel.Mark(); err != nil {
				started <- err
				return
			}
		}
		if c.SetIDs && !c.Gains {
			if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
				started <- err
				return
			}
		}
		started <- cmd.Start()
	})
	if err := <-started; err != nil {
		return result{}, err
	}
	if c.Orphan {
		return result{}, cmd.Wait()
	}
	go cmd.Wait() // no zombies
	return result{PID: cmd.Process.Pid}, nil
}

func (d *driver) open() (*attachment, error) {
	ctx, cancel := context.WithCancel(context.Background())
	stream, err := d.rpc.Attach(ctx)
	return &attachment{stream: stream, cancel: cancel}, err
}

// attach opens a stream with a ticket, or resumes what was attached on an earlier one.
func (d *driver) attach(c command) (result, error) {
	a, err := d.open()
	if err != nil {
		return result{}, err
	}
	m := &spawnv1.AttachRequest{Ticket: c.Ticket, Resume: c.ID, Relayed: c.Relayed}
	spoil(m, c.Unknown)
	if old := d.streams[c.Stream]; old != nil {
		a.key, a.first = old.key, old.first
	}
	if err := d.fill(a, m, c, c.ID != ""); err != nil {
		return result{}, err
	}
	r, err := a.ask(m)
	if err == nil {
		d.streams[c.Stream] = a
	} else {
		a.cancel()
	}
	return r, err
}

func (d *driver) renew(c command) (result, error) {
	a := d.streams[c.Stream]
	m := &spawnv1.AttachRequest{Ticket: c.Ticket, Resume: c.ID}
	spoil(m, c.Unknown)
	if err := d.fill(a, m, c, true); err != nil {
		return result{}, err
	}
	return a.ask(m)
}

func (d *driver) fill(a *attachment, m *spawnv1.AttachRequest, c command, prove bool) (err error) {
	switch c.Key {
	case "":
		a.pending, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "same":
		a.pending = a.key
	default:
		a.pending = d.streams[c.Key].key
	}
	if err != nil {
		return err
	}
	if m.Csr = c.CSR; m.Csr == nil {
		if m.Csr, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{"ignored.example"}}, a.pending); err != nil {
			return err
		}
	}
	if !prove || c.Proof == "none" {
		return nil
	}
	digest, key := spawn.RenewalDigest(m.Csr), a.key
	switch c.Proof {
	case "fresh":
		key = a.pending
	case "first":
		key = a.first
	case "other":
		digest = spawn.RenewalDigest(append(m.Csr[:len(m.Csr):len(m.Csr)], 0))
	}
	if key == nil {
		key = a.pending
	}
	m.Proof, err = ecdsa.SignASN1(rand.Reader, key, digest[:])
	return err
}

func (a *attachment) ask(m *spawnv1.AttachRequest) (result, error) {
	if err := a.stream.Send(m); err != nil && !errors.Is(err, io.EOF) {
		return result{}, err
	}
	resp, err := a.stream.Recv()
	if err != nil {
		return result{}, err
	}
	a.key, a.id = a.pending, resp.GetSpiffeId()
	if a.first == nil {
		a.first = a.key
	}
	return result{ID: a.id, Grade: resp.GetGrade(), SVID: resp.GetSvid()[0], Count: len(resp.GetBundle())}, nil
}

// hear reads ended agents: with After up to the first live message, without until one has c.ID.
func (d *driver) hear(c command) (r result, err error) {
	if c.ID == "" {
		if d.ended, err = d.rpc.Ended(context.Background(), &spawnv1.EndedRequest{AfterRevision: c.After}); err != nil {
			return r, err
		}
	}
	for {
		m, err := d.ended.Recv()
		if err != nil {
			return r, err
		}
		r.Ended = append(r.Ended, endedNotice{m.GetRevision(), m.GetSpiffeId(), m.GetReason(), m.GetLive()})
		if c.ID == "" && m.GetLive() || c.ID != "" && m.GetSpiffeId() == c.ID {
			return r, nil
		}
	}
}

func withHeader(ctx context.Context, c command) context.Context {
	switch c.Header {
	case "none":
		return ctx
	case "":
		return metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true")
	}
	return metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", c.Header)
}

func (d *driver) fetch(ctx context.Context, c command) (result, error) {
	stream, err := d.api.FetchX509SVID(withHeader(ctx, c), &workload.X509SVIDRequest{})
	if err != nil {
		return result{}, err
	}
	m, err := stream.Recv()
	var r result
	for _, s := range m.GetSvids() {
		r.IDs = append(r.IDs, s.GetSpiffeId())
		r.SVID = s.GetX509Svid()
	}
	return r, err
}

func startTime(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	var n uint64
	_, err = fmt.Sscan(f[19], &n)
	return n, err
}

var ok = codes.OK.String()
