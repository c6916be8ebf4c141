package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// longest is how long a statement may take before it counts as hanging.
const longest = 45 * time.Second

// load works on one connection until its input ends, and connects again whatever happens. Each statement carries a
// token of its own as a constant, so that its effect and its record can be found.
type load struct {
	name  string
	kinds []string
	pause time.Duration
	count int
	out   *sync.Mutex
}

// loadTarget (PREFIX, CONNECTIONS, PAUSE, KINDS) prints one line per attempt: kind, token, when it began and ended in
// nanoseconds, "ok", "refused" (with SQLSTATE and message), "broken" (the connection) or "wrong", each after a tab.
func loadTarget(ctx context.Context, args []string) error {
	connections, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	pause, err := time.ParseDuration(args[2])
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		stop()
	}()
	var out sync.Mutex
	var all sync.WaitGroup
	for i := range connections {
		l := &load{name: fmt.Sprintf("%s.%d", args[0], i), kinds: strings.Split(args[3], ","), pause: pause, out: &out}
		all.Go(func() { l.run(ctx) })
	}
	all.Wait()
	return nil
}

func (l *load) run(ctx context.Context) {
	for ctx.Err() == nil {
		l.session(ctx)
		l.rest(ctx, 50*time.Millisecond)
	}
}

func (l *load) rest(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// session connects and works until the connection is lost, for 200 statements at most.
func (l *load) session(ctx context.Context) {
	began := time.Now()
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), longest)
	conn, err := dialTarget(limited)
	cancel()
	l.say("connect", "-", began, err)
	if err != nil {
		return
	}
	defer func() {
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(limited)
	}()
	for range 200 {
		if ctx.Err() != nil || conn.IsClosed() {
			return
		}
		kind := l.kinds[rand.IntN(len(l.kinds))]
		l.count++
		token := fmt.Sprintf("%s.%d", l.name, l.count)
		began := time.Now()
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), longest)
		err := statements[kind](limited, conn, token)
		cancel()
		l.say(kind, token, began, err)
		l.rest(ctx, l.pause)
	}
}

// dial connects by the run's environment alone.
func dialTarget(ctx context.Context) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig("")
	if err != nil {
		return nil, err
	}
	inner := cfg.DialFunc
	cfg.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := inner(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return lastWords{c}, nil
	}
	return pgx.ConnectConfig(ctx, cfg)
}

// lastWords reads what the other end said before it closed, as libpq does and pgx doesn't.
type lastWords struct{ net.Conn }

func (c lastWords) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if err == nil || c.SetReadDeadline(time.Now().Add(time.Second)) != nil {
		return n, err
	}
	front := pgproto3.NewFrontend(c.Conn, io.Discard)
	for {
		msg, rerr := front.Receive()
		if rerr != nil {
			return n, err
		}
		if e, ok := msg.(*pgproto3.ErrorResponse); ok {
			return n, pgconn.ErrorResponseToPgError(e)
		}
	}
}

// say prints one attempt in one write: a line that arrives is whole.
func (l *load) say(kind, token string, began time.Time, err error) {
	result := "ok\t\t"
	var refused *pgconn.PgError
	var wrong wrongAnswer
	switch {
	case errors.As(err, &refused):
		result = "refused\t" + refused.Code + "\t" + refused.Message
	case errors.As(err, &wrong):
		result = "wrong\t\t" + wrong.Error()
	case errors.Is(err, context.DeadlineExceeded):
		result = "wrong\t\tno answer within " + longest.String()
	case err != nil:
		result = "broken\t\t" + err.Error()
	}
	line := fmt.Sprintf("%s\t%s\t%d\t%d\t%s\n", kind, token, began.UnixNano(), time.Now().UnixNano(), strings.ReplaceAll(result, "\n", " "))
	l.out.Lock()
	defer l.out.Unlock()
	_, _ = os.Stdout.WriteString(line)
}

// wrongAnswer is an answer that must never come.
type wrongAnswer string

func (w wrongAnswer) Error() string { return string(w) }

// statements by kind. The exact text of each, with its token, is what the proxy hashes into the record.
var statements = map[string]func(context.Context, *pgx.Conn, string) error{
	"read": func(ctx context.Context, conn *pgx.Conn, token string) error {
		var got string
		err := conn.QueryRow(ctx, "SELECT '"+token+"' AS token FROM orders LIMIT 1", pgx.QueryExecModeSimpleProtocol).Scan(&got)
		if err == nil && got != token {
			return wrongAnswer("asked for " + token + ", got " + got)
		}
		return err
	},
	"masked": func(ctx context.Context, conn *pgx.Conn, token string) error {
		var email string
		err := conn.QueryRow(ctx, "SELECT email FROM customers WHERE name <> '"+token+"' LIMIT 1", pgx.QueryExecModeExec).Scan(&email)
		if err == nil && !strings.Contains(email, "***@") {
			return wrongAnswer("not masked: " + email)
		}
		return err
	},
	"write": func(ctx context.Context, conn *pgx.Conn, token string) error {
		tag, err := conn.Exec(ctx, "INSERT INTO effects (token) VALUES ('"+token+"')", pgx.QueryExecModeSimpleProtocol)
		return one(tag, err)
	},
	"extended": func(ctx context.Context, conn *pgx.Conn, token string) error {
		tag, err := conn.Exec(ctx, "INSERT INTO effects (token) VALUES ('"+token+"')", pgx.QueryExecModeExec)
		return one(tag, err)
	},
	"transaction": func(ctx context.Context, conn *pgx.Conn, token string) error {
		tx, err := conn.Begin(ctx)
		if err != nil {
			return err
		}
		tag, err := tx.Exec(ctx, "INSERT INTO effects (token) VALUES ('"+token+"')", pgx.QueryExecModeSimpleProtocol)
		if err = one(tag, err); err != nil {
			_ = tx.Rollback(ctx)
			return err
		}
		return tx.Commit(ctx)
	},
	"drop": func(ctx context.Context, conn *pgx.Conn, _ string) error {
		_, err := conn.Exec(ctx, "DROP TABLE effects", pgx.QueryExecModeSimpleProtocol)
		if err == nil {
			return wrongAnswer("DROP was not refused")
		}
		return err
	},
}

func one(tag pgconn.CommandTag, err error) error {
	if err == nil && tag.RowsAffected() != 1 {
		return wrongAnswer(fmt.Sprintf("one row, not %d", tag.RowsAffected()))
	}
	return err
}
