package supervise

import (
	"context"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"crypto/x509"
)

// workloadServer is the SPIFFE Workload API, for programs that speak it. A JWT-SVID says who the agent is, to services outside
// the mesh; what it may do at a target says a credential, which comes from the broker.
type workloadServer struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	s   *Supervisor
	ctx context.Context
	jwt *jwtRelay
}

// checkHeader demands the header that browsers and the like can't be tricked into sending (SPIFFE
// Workload Endpoint §3).
func checkHeader(ctx context.Context) error {
	md, _ := metadata.FromIncomingContext(ctx)
	if v := md.Get("workload.spiffe.io"); len(v) != 1 || v[0] != "true" {
		return status.Error(codes.InvalidArgument, "security header missing from request")
	}
	return nil
}

func (w *workloadServer) FetchX509SVID(_ *workload.X509SVIDRequest, out workload.SpiffeWorkloadAPI_FetchX509SVIDServer) error {
	return w.follow(out.Context(), func() error {
		svid, err := w.s.id.GetX509SVID()
		if err != nil {
			return status.Error(codes.PermissionDenied, err.Error())
		}
		bundle, err := w.s.id.GetX509BundleForTrustDomain(svid.ID.TrustDomain())
		if err != nil {
			return status.Error(codes.Internal, err.Error())
		}
		key, err := x509.MarshalPKCS8PrivateKey(svid.PrivateKey)
		if err != nil {
			return status.Error(codes.Internal, "the agent's key can't be encoded")
		}
		var certs, roots []byte
		for _, c := range svid.Certificates {
			certs = append(certs, c.Raw...)
		}
		for _, c := range bundle.X509Authorities() {
			roots = append(roots, c.Raw...)
		}
		return out.Send(&workload.X509SVIDResponse{Svids: []*workload.X509SVID{{
			SpiffeId: svid.ID.String(), X509Svid: certs, X509SvidKey: key, Bundle: roots,
		}}})
	})
}

func (w *workloadServer) FetchX509Bundles(_ *workload.X509BundlesRequest, out workload.SpiffeWorkloadAPI_FetchX509BundlesServer) error {
	return w.follow(out.Context(), func() error {
		td := w.s.mesh.TrustDomain
		bundle, err := w.s.id.GetX509BundleForTrustDomain(td)
		if err != nil {
			return status.Error(codes.Internal, err.Error())
		}
		var roots []byte
		for _, c := range bundle.X509Authorities() {
			roots = append(roots, c.Raw...)
		}
		return out.Send(&workload.X509BundlesResponse{Bundles: map[string][]byte{td.IDString(): roots}})
	})
}

// follow sends at once and at each change.
func (w *workloadServer) follow(ctx context.Context, send func() error) error {
	if err := checkHeader(ctx); err != nil {
		return err
	}
	for {
		changed := w.s.id.Changed()
		if err := send(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-w.ctx.Done():
			return status.Error(codes.Unavailable, "the agent has ended")
		case <-w.s.id.Done():
			return status.Error(codes.PermissionDenied, "the agent has ended")
		case <-changed:
		}
	}
}
