package postgres

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strconv"

	"github.com/deputymesh/deputy/internal/sqlparse"
	"github.com/deputymesh/deputy/proxy"
)

// functionCall handles FunctionCall, which names a function by its OID. It is decided as SELECT of that function would be.
func (s *session) functionCall(ctx context.Context, body []byte) error {
	p := parts{b: body}
	oid := p.uint32()
	if !wellFormedCall(&p) {
		return badMessage('F')
	}
	if skipped, err := s.beginQuery(ctx); err != nil || skipped {
		return err
	}
	name, found, err := s.e.catalogs[s.database].function(ctx, oid)
	if err != nil || !found {
		o := objection(classUnsupported, fmt.Sprintf("there is no function with OID %d", oid))
		if err != nil {
			s.log.ErrorContext(ctx, "a function couldn't be looked up", "error", err)
			o = objection(classTarget, "the target's catalogue can't be read, so nothing can be decided; try again")
		}
		f, err := s.refuse(ctx, proxy.Command{Kind: "function call", Database: s.database, Account: s.account}, o)
		if err != nil {
			return err
		}
		return s.refuseQuery(ctx, f)
	}
	text := "FUNCTION CALL " + name.String()
	r, f, err := s.authorize(ctx, &sqlparse.Statement{
		Kind: sqlparse.KindSelect, Tag: "FUNCTION CALL", Text: fmt.Sprintf("%s sha256:%x", text, sha256.Sum256(body)), Normalized: text,
		Functions: []sqlparse.Name{name},
	})
	if err != nil {
		return err
	}
	if f != nil {
		return s.refuseQuery(ctx, f)
	}
	if err := s.usePasses(ctx, []*run{r}); err != nil {
		return err
	}
	s.note([]*run{r})
	ok, err := s.send(ctx, &entry{step: stepCall, run: r, batch: s.batch, scrub: s.joins && s.sawMasked})
	s.batch++
	if err != nil || !ok {
		return err
	}
	s.up.out.frame('F', body)
	return nil
}

// wellFormedCall checks what follows the OID of a FunctionCall.
func wellFormedCall(p *parts) bool {
	formats := p.int16()
	if formats < 0 {
		return false
	}
	p.take(2 * formats)
	args := p.int16()
	if args < 0 || formats > 1 && formats != args {
		return false
	}
	for range args {
		if n := p.int32(); n > 0 {
			p.take(n)
		} else if n < -1 {
			return false
		}
	}
	p.int16() // format of the result
	return p.done()
}

// callResult relays what a function gave.
func (s *session) callResult(ctx context.Context, size int) error {
	e, r := s.answered()
	if e == nil || e.step != stepCall || r == nil || e.failed || e.at > 0 {
		return desync('V', e)
	}
	if err := s.release(ctx, r); err != nil {
		return err
	}
	e.at++
	r.bytes = int64(size) + 5
	if err := r.complete(proxy.Outcome{Status: "ok", Command: "FUNCTION CALL"}); err != nil {
		return err
	}
	return s.relayBody('V', size)
}

const queryFunction = `select n.nspname, p.proname from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace where p.oid = $1`

// function finds the name of a function.
func (c *catalog) function(ctx context.Context, oid uint32) (name sqlparse.Name, found bool, err error) {
	select {
	case c.loading <- struct{}{}:
		defer func() { <-c.loading }()
	case <-ctx.Done():
		return name, false, ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, catalogTimeout)
	defer cancel()
	if err := c.connect(ctx); err != nil {
		return name, false, err
	}
	c.may.left = maxCatalog
	r := c.conn.ExecParams(ctx, queryFunction, [][]byte{strconv.AppendUint(nil, uint64(oid), 10)}, nil, nil, nil).Read()
	if r.Err != nil {
		_ = c.conn.Conn().Close()
		c.conn = nil
		return name, false, fmt.Errorf("looking for function %d: %w", oid, r.Err)
	}
	if len(r.Rows) != 1 {
		return name, false, nil
	}
	if len(r.Rows[0]) != 2 {
		return name, false, errors.New("the catalogue gave something else than a name")
	}
	return sqlparse.Name{Schema: string(r.Rows[0][0]), Name: string(r.Rows[0][1])}, true, nil
}
