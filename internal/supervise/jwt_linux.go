package supervise

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

const (
	// maxJWTCalls bounds the JWT calls of an agent that are under way, bundle streams included.
	maxJWTCalls = 64
	// maxKeptJWTs bounds the answers that are kept.
	maxKeptJWTs = 64
)

// jwtRelay asks the issuer for JWT-SVIDs in the agent's name: the issuer knows the supervisor by the kernel. It has a
// connection of its own, made at the first call, so that no flood of these stands in the way of the stream that the agent lives by.
type jwtRelay struct {
	conn   *grpc.ClientConn
	issuer workload.SpiffeWorkloadAPIClient
	room   chan struct{}

	// kept are the issuer's answers, by what was asked. Programs ask before each request that they send, as SPIFFE's libraries have it, and
	// each token of the issuer's is a record.
	mu   sync.Mutex
	kept map[string]keptJWT // guarded by mu
}

type keptJWT struct {
	answer *workload.JWTSVIDResponse
	until  time.Time // half of its life
}

// keyOf says what was asked for. No name that the issuer takes holds a NUL.
func keyOf(req *workload.JWTSVIDRequest) string {
	return req.GetSpiffeId() + "\x00" + strings.Join(req.GetAudience(), "\x00")
}

// again is an answer that was given before, with at least half of its life left.
func (r *jwtRelay) again(req *workload.JWTSVIDRequest) *workload.JWTSVIDResponse {
	r.mu.Lock()
	defer r.mu.Unlock()
	if k := r.kept[keyOf(req)]; time.Now().Before(k.until) {
		return k.answer
	}
	return nil
}

// keep keeps an answer for who asks the same.
func (r *jwtRelay) keep(req *workload.JWTSVIDRequest, answer *workload.JWTSVIDResponse) {
	if len(answer.GetSvids()) != 1 {
		return
	}
	v, err := jwtsvid.ParseInsecure(answer.GetSvids()[0].GetSvid(), req.GetAudience()) // the issuer's own word
	if err != nil {
		return
	}
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.kept) >= maxKeptJWTs {
		clear(r.kept)
	}
	r.kept[keyOf(req)] = keptJWT{answer, now.Add(v.Expiry.Sub(now) / 2)}
}

func newJWTRelay(socket string) (*jwtRelay, error) {
	conn, err := DialIssuer(socket)
	if err != nil {
		return nil, err
	}
	return &jwtRelay{
		conn: conn, issuer: workload.NewSpiffeWorkloadAPIClient(conn), room: make(chan struct{}, maxJWTCalls), kept: map[string]keptJWT{},
	}, nil
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
	if answer := w.jwt.again(req); answer != nil {
		return answer, nil
	}
	answer, err := w.jwt.issuer.FetchJWTSVID(ctx, req)
	if err == nil {
		w.jwt.keep(req, answer)
	}
	return answer, err
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
