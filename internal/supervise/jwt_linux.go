package supervise

import (
	"context"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// maxJWTCalls bounds the JWT calls of an agent that are under way, bundle streams included.
const maxJWTCalls = 64

// jwtRelay asks the issuer for JWT-SVIDs in the agent's name: the issuer knows the supervisor by the kernel. It has a
// connection of its own, made at the first call, so that no flood of these stands in the way of the stream that the agent lives by.
type jwtRelay struct {
	conn   *grpc.ClientConn
	issuer workload.SpiffeWorkloadAPIClient
	room   chan struct{}
}

func newJWTRelay(socket string) (*jwtRelay, error) {
	conn, err := DialIssuer(socket)
	if err != nil {
		return nil, err
	}
	return &jwtRelay{conn, workload.NewSpiffeWorkloadAPIClient(conn), make(chan struct{}, maxJWTCalls)}, nil
}

func (r *jwtRelay) close() error { return r.conn.Close() }

// begin takes a place for a call, which the returned function gives back; ctx is for the call to the issuer.
func (w *workloadServer) begin(ctx context.Context) (context.Context, func(), error) {
	if err := checkHeader(ctx); err != nil {
		return nil, nil, err
	}
	if err := w.s.id.Err(); err != nil {
		return nil, nil, status.Error(codes.PermissionDenied, "the agent has ended")
	}
	select {
	case w.jwt.room <- struct{}{}:
	default:
		return nil, nil, status.Errorf(codes.ResourceExhausted, "the agent has %d calls for JWT-SVIDs under way already", maxJWTCalls)
	}
	ctx, cancel := context.WithCancel(ctx)
	unhook := context.AfterFunc(w.ctx, cancel)
	return metadata.NewOutgoingContext(ctx, metadata.Pairs("workload.spiffe.io", "true")), func() {
		unhook()
		cancel()
		<-w.jwt.room
	}, nil
}

// FetchJWTSVID asks for what the caller asks for: whose it may be is for the issuer to say.
func (w *workloadServer) FetchJWTSVID(ctx context.Context, req *workload.JWTSVIDRequest) (*workload.JWTSVIDResponse, error) {
	ctx, done, err := w.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	return w.jwt.issuer.FetchJWTSVID(ctx, req)
}

func (w *workloadServer) ValidateJWTSVID(ctx context.Context, req *workload.ValidateJWTSVIDRequest) (*workload.ValidateJWTSVIDResponse, error) {
	ctx, done, err := w.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	return w.jwt.issuer.ValidateJWTSVID(ctx, req)
}

func (w *workloadServer) FetchJWTBundles(req *workload.JWTBundlesRequest, out workload.SpiffeWorkloadAPI_FetchJWTBundlesServer) error {
	ctx, done, err := w.begin(out.Context())
	if err != nil {
		return err
	}
	defer done()
	in, err := w.jwt.issuer.FetchJWTBundles(ctx, req)
	if err != nil {
		return err
	}
	for {
		m, err := in.Recv()
		if err != nil {
			return err
		}
		if err := out.Send(m); err != nil {
			return err
		}
	}
}
