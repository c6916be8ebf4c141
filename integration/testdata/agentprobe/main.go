// Command agentprobe is what the tests run inside agents: it does what an agent might, honest or not, and
// prints one line per fact.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/deputymesh/deputy/client"
)

func main() {
	acts := map[string]func(context.Context, []string) error{
		"pgx":        unmodifiedPgx,
		"copy":       copyRows,
		"credential": revealCredential,
		"identity":   revealIdentity,
		"present":    presentCredential,
		"hold":       holdConnection,
		"svid":       revealSVID,
		"jwt":        jwt,
		"load":       loadTarget,
		"attack":     attack,
		"orphan":     orphan,
		"restrained": restrained,
		"pry":        pry,
		"rpc":        rpc,
		"mcp":        tools,
		"sleep":      sleep,
		"names":      names,
		"ticket":     ticket,
		"steal":      steal,
		"lend":       lend,
		"borrow":     borrow,
		"flood":      flood,
		"mask":       mask,
		"speak":      speak,
		"spawn":      spawnMany,
		"runs":       runMany,
	}
	if len(os.Args) < 2 || acts[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "agentprobe: which act?")
		os.Exit(2)
	}
	limit := 3 * time.Minute
	if os.Args[1] == "identity" || os.Args[1] == "load" {
		limit = 3 * time.Hour // as long as the measurements
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if err := acts[os.Args[1]](ctx, os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "agentprobe:", err)
		os.Exit(1)
	}
}

// unmodifiedPgx connects by the run's environment alone and asks in text and in binary, by simple and by
// prepared statements.
func unmodifiedPgx(ctx context.Context, _ []string) error {
	conn, err := pgx.Connect(ctx, "")
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	const query = "SELECT id, name, email, phone FROM customers WHERE id <= $1 ORDER BY id"
	for _, mode := range []struct {
		name    string
		options []any
	}{
		{"simple", []any{pgx.QueryExecModeSimpleProtocol, 2}},
		{"exec", []any{pgx.QueryExecModeExec, 2}},
		{"describe", []any{pgx.QueryExecModeDescribeExec, 2}},
		{"prepared", []any{pgx.QueryExecModeCacheStatement, 2}},
		{"prepared again", []any{pgx.QueryExecModeCacheStatement, 2}},
		{"binary", []any{pgx.QueryResultFormats{pgx.BinaryFormatCode}, 2}},
		{"text", []any{pgx.QueryResultFormats{pgx.TextFormatCode}, 2}},
	} {
		rows, err := conn.Query(ctx, query, mode.options...)
		if err != nil {
			return fmt.Errorf("%s: %w", mode.name, err)
		}
		for rows.Next() {
			var id int
			var name, email, phone string
			if err := rows.Scan(&id, &name, &email, &phone); err != nil {
				return fmt.Errorf("%s: %w", mode.name, err)
			}
			fmt.Printf("%s %d|%s|%s|%s\n", mode.name, id, name, email, phone)
		}
		if err := rows.Err(); err != nil {
			return fmt.Errorf("%s: %w", mode.name, err)
		}
	}
	var refused *pgconn.PgError
	if _, err := conn.Exec(ctx, "DROP TABLE customers"); !errors.As(err, &refused) {
		return fmt.Errorf("DROP was not refused: %v", err)
	}
	fmt.Println("refused", refused.Code, refused.Message)
	batch := &pgx.Batch{}
	batch.Queue("SELECT count(*) FROM customers")
	batch.Queue("SELECT count(*) FROM orders")
	results := conn.SendBatch(ctx, batch)
	defer results.Close()
	for range 2 {
		var n int
		if err := results.QueryRow().Scan(&n); err != nil {
			return fmt.Errorf("batch: %w", err)
		}
		fmt.Println("count", n)
	}
	return nil
}

// copyRows (TABLE, ROWS) copies rows into a table of (id int, note text), and out again.
func copyRows(ctx context.Context, args []string) error {
	rows, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, "")
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	n, err := conn.CopyFrom(ctx, pgx.Identifier{args[0]}, []string{"id", "note"}, pgx.CopyFromSlice(rows, func(i int) ([]any, error) {
		return []any{i, fmt.Sprint("note ", i)}, nil
	}))
	if err != nil {
		return err
	}
	fmt.Println("in", n)
	tag, err := conn.PgConn().CopyTo(ctx, io.Discard, "COPY "+pgx.Identifier{args[0]}.Sanitize()+" TO STDOUT (FORMAT binary)")
	if err != nil {
		return err
	}
	fmt.Println("out", tag)
	return nil
}

// revealIdentity prints, at each line of its input, this agent's SVID, key, bundle and a credential for a target, as one line
// of JSON: what an unmodified client needs to reach the proxy without the run's listener.
func revealIdentity(ctx context.Context, args []string) error {
	agent, err := client.FromEnvironment(ctx)
	if err != nil {
		return err
	}
	defer agent.Close()
	source, err := agent.Source(ctx) // it rotates
	if err != nil {
		return err
	}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		svid, err := source.GetX509SVID()
		if err != nil {
			return err
		}
		bundle, err := source.GetX509BundleForTrustDomain(svid.ID.TrustDomain())
		if err != nil {
			return err
		}
		var out struct{ SVID, Key, Bundle, Credential string }
		certs, key, err := svid.Marshal()
		if err != nil {
			return err
		}
		roots, err := bundle.Marshal()
		if err != nil {
			return err
		}
		c, err := agent.Credential(ctx, args[0])
		if err != nil {
			return err
		}
		out.SVID, out.Key, out.Bundle, out.Credential = string(certs), string(key), string(roots), c.Reveal()
		if err := json.NewEncoder(os.Stdout).Encode(out); err != nil {
			return err
		}
	}
	return lines.Err()
}

// revealCredential prints this agent's credential for a target.
func revealCredential(ctx context.Context, args []string) error {
	agent, err := client.FromEnvironment(ctx)
	if err != nil {
		return err
	}
	defer agent.Close()
	c, err := agent.Credential(ctx, args[0])
	if err != nil {
		return err
	}
	fmt.Println(c.Reveal())
	return nil
}
