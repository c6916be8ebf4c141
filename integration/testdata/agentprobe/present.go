package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// presentCredential connects to a proxy (ADDRESS) with this agent's own SVID and presents the credential in
// FILE, whoever's it is.
func presentCredential(ctx context.Context, args []string) error { return present(ctx, args, false) }

// holdConnection is presentCredential, and then waits for what the proxy does.
func holdConnection(ctx context.Context, args []string) error { return present(ctx, args, true) }

func present(ctx context.Context, args []string, hold bool) error {
	credential, err := os.ReadFile(args[1])
	if err != nil {
		return err
	}
	source, err := workloadapi.NewX509Source(ctx)
	if err != nil {
		return fmt.Errorf("this agent's SVID: %w", err)
	}
	defer source.Close()
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", args[0])
	if err != nil {
		return err
	}
	defer raw.Close()
	if err := raw.SetDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		return err
	}
	plain := pgproto3.NewFrontend(raw, raw)
	plain.Send(&pgproto3.SSLRequest{})
	if err := plain.Flush(); err != nil {
		return err
	}
	var answer [1]byte
	if _, err := raw.Read(answer[:]); err != nil || answer[0] != 'S' {
		return fmt.Errorf("the proxy doesn't speak TLS: %q %w", answer, err)
	}
	cfg := tlsconfig.MTLSClientConfig(source, source, tlsconfig.AuthorizeAny())
	conn := tls.Client(raw, cfg)
	front := pgproto3.NewFrontend(conn, conn)
	front.Send(&pgproto3.StartupMessage{ProtocolVersion: pgproto3.ProtocolVersion30, Parameters: map[string]string{"database": "shop"}})
	if err := front.Flush(); err != nil {
		return err
	}
	for {
		msg, err := front.Receive()
		if err != nil {
			return err
		}
		switch msg := msg.(type) {
		case *pgproto3.AuthenticationCleartextPassword:
			front.Send(&pgproto3.PasswordMessage{Password: strings.TrimSpace(string(credential))})
			if err := front.Flush(); err != nil {
				return err
			}
		case *pgproto3.ErrorResponse:
			fmt.Println("refused", msg.Code, msg.Message)
			return nil
		case *pgproto3.ReadyForQuery:
			fmt.Println("let in")
			if !hold {
				return nil
			}
		case *pgproto3.AuthenticationOk, *pgproto3.ParameterStatus, *pgproto3.BackendKeyData:
		default:
			return errors.New("an unexpected message")
		}
	}
}
