package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"net/url"
	"os"
	"strings"
	"time"

	agentv1 "github.com/deputymesh/deputy/proto/deputy/agent/v1"
	spawnv1 "github.com/deputymesh/deputy/proto/deputy/spawn/v1"
)

// request is a certificate request that asks for somebody's name.
func request(uri string) ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(uri)
	if err != nil {
		return nil, err
	}
	return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{u}, DNSNames: []string{"broker"}}, key)
}

// names asks the agent's supervisor (A_AGENT) for children of all sorts of names, and for the name of a role and of the agent
// itself by way of a certificate request.
func names(ctx context.Context, _ []string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	conn := dialSocket(os.Getenv("A_AGENT"))
	defer conn.Close()
	rpc := agentv1.NewAgentClient(conn)
	for _, name := range []string{
		"", ".", "..", "/", "a/b", "../planner", "planner/" + strings.Repeat("0", 32), "a%2fb", "a\\b", "a b", "a\x00b", "a\nb", "a:b", "a?b", "a#b", "a@b", "a.b", "a_b",
		"Planner", "PLANNER", "plänner", "p\u0430planner", "\u202eplanner", "ﬁ", "1a", "-a", strings.Repeat("a", 33), strings.Repeat("a", 10000),
	} {
		report(fmt.Sprintf("name %.20q", name), func() (string, error) {
			stream, err := rpc.Spawn(ctx)
			if err != nil {
				return "", err
			}
			_ = stream.Send(&agentv1.SpawnRequest{Message: &agentv1.SpawnRequest_Start{Start: &agentv1.SpawnStart{
				Name: name, Delegation: &agentv1.Delegation{Left: -1}, Isolation: agentv1.Isolation_ISOLATION_NONE,
			}}})
			r, err := stream.Recv()
			return r.GetAdopted().GetSpiffeId(), err
		})
	}
	d, err := rpc.Describe(ctx, &agentv1.DescribeRequest{})
	if err != nil {
		return err
	}
	for _, wish := range []string{d.GetSpiffeId(), "spiffe://test.example/deputy/broker", "spiffe://other.example/agent/planner/" + strings.Repeat("0", 32)} {
		csr, err := request(wish)
		if err != nil {
			return err
		}
		stream, err := rpc.Join(ctx)
		if err != nil {
			return err
		}
		if err := stream.Send(&agentv1.JoinRequest{Name: "wish", Delegation: &agentv1.Delegation{Left: -1}, Csr: csr}); err != nil {
			return err
		}
		r, err := stream.Recv()
		if err != nil {
			return err
		}
		cert, err := x509.ParseCertificate(r.GetIdentity().GetSvid()[0])
		if err != nil {
			return err
		}
		fmt.Println("wish", wish, "got", cert.URIs, cert.DNSNames)
	}
	fmt.Println("over")
	return nil
}

// ticket registers a child and shows its ticket and name to everybody in FILE. When its input ends, it comes to use it.
func ticket(ctx context.Context, args []string) error {
	conn := dialSocket(os.Getenv("A_AGENT"))
	defer conn.Close()
	stream, err := agentv1.NewAgentClient(conn).Spawn(ctx)
	if err != nil {
		return err
	}
	if err := stream.Send(&agentv1.SpawnRequest{Message: &agentv1.SpawnRequest_Start{Start: &agentv1.SpawnStart{
		Name: "victim", Delegation: &agentv1.Delegation{Left: -1}, Isolation: agentv1.Isolation_ISOLATION_NONE,
	}}}); err != nil {
		return err
	}
	r, err := stream.Recv()
	if err != nil {
		return err
	}
	text := hex.EncodeToString(r.GetAdopted().GetTicket()) + " " + r.GetAdopted().GetSpiffeId()
	if err := os.WriteFile(args[0], []byte(text), 0o644); err != nil {
		return err
	}
	fmt.Println("shown")
	_, _ = os.Stdin.Read(make([]byte, 1))
	attachWith(ctx, args[0])
	return nil
}

// attachWith tries to become the agent whose ticket and name stand in a file, at the issuer (A_ISSUER), in every way there is.
func attachWith(ctx context.Context, file string) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	raw, err := os.ReadFile(file)
	if err != nil {
		panic(err) // the test's own mistake
	}
	number, id, _ := strings.Cut(string(raw), " ")
	secret, err := hex.DecodeString(number)
	if err != nil {
		panic(err)
	}
	csr, err := request(id)
	if err != nil {
		panic(err)
	}
	parent := id[:strings.LastIndex(id[:strings.LastIndex(id, "/")], "/")]
	conn := dialSocket("unix://" + os.Getenv("A_ISSUER"))
	defer conn.Close()
	rpc := spawnv1.NewSpawnClient(conn)
	report("claim", func() (string, error) {
		r, err := rpc.Claim(ctx, &spawnv1.ClaimRequest{Ticket: secret})
		return fmt.Sprint(r), err
	})
	for _, try := range []struct {
		name string
		m    *spawnv1.AttachRequest
	}{
		{"resume", &spawnv1.AttachRequest{Resume: id, Csr: csr, Proof: []byte("none")}},
		{"resume the parent", &spawnv1.AttachRequest{Resume: parent, Csr: csr, Proof: []byte("none")}},
		{"ticket and resume", &spawnv1.AttachRequest{Ticket: secret, Resume: id, Csr: csr}},
		{"relayed", &spawnv1.AttachRequest{Ticket: secret, Csr: csr, Relayed: true}},
		{"attach", &spawnv1.AttachRequest{Ticket: secret, Csr: csr}},
	} {
		report(try.name, func() (string, error) {
			stream, err := rpc.Attach(ctx)
			if err != nil {
				return "", err
			}
			_ = stream.Send(try.m)
			r, err := stream.Recv()
			return r.GetSpiffeId(), err
		})
	}
	fmt.Println("over")
}

func steal(ctx context.Context, args []string) error {
	attachWith(ctx, args[0])
	return nil
}
