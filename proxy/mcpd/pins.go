package mcpd

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/internal/strictjson"
)

const (
	maxPins   = 4096
	classHeld = "held" // a tool isn't what somebody reviewed
)

// pins hold tools whose description, schema or anything else in their entry of a list changed: since they were reviewed or, where nobody
// reviewed them, since this proxy saw them first (a "rug pull").
type pins struct {
	reviewed map[string]string // digests by name; nil if nobody did

	mu    sync.Mutex
	first map[string]string // by account and name; guarded by mu, as is what follows
	held  map[string]bool
}

func newPins(reviewed map[string]string) *pins {
	return &pins{reviewed: reviewed, first: map[string]string{}, held: map[string]bool{}}
}

// see takes notice of a tool in a list, and says whether it may be used.
func (p *pins) see(account, name string, entry []byte) bool {
	digest, err := ToolDigest(entry)
	if err != nil {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	key := account + " " + name
	want, known := p.reviewed[name]
	if p.reviewed == nil {
		if want, known = p.first[key]; !known && len(p.first) < maxPins {
			p.first[key], want, known = digest, digest, true
		}
	}
	same := known && want == digest
	if same {
		delete(p.held, key)
	} else if len(p.held) < maxPins {
		p.held[key] = true
	}
	return same
}

// hold holds a tool until a list shows it as it was.
func (p *pins) hold(account, name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.held) < maxPins {
		p.held[account+" "+name] = true
	}
}

// mayCall says whether a tool is what it was, as far as lists have shown it.
func (p *pins) mayCall(account, name string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, known := p.reviewed[name]; p.reviewed != nil && !known {
		return false
	}
	return !p.held[account+" "+name] && len(p.held) < maxPins
}

// ToolDigest is the SHA-256, in hexadecimal, of a tool's entry in a list: all of it, in one spelling.
func ToolDigest(entry []byte) (string, error) {
	if err := strictjson.Check(entry); err != nil {
		return "", err
	}
	dec := json.NewDecoder(bytes.NewReader(entry))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return "", err
	}
	text, err := encode(v) // members sorted
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:]), nil
}

// Review reads a result of tools/list, or the message with it, and returns the lines of a file of reviewed tools: digest and name.
func Review(list []byte) ([]string, error) {
	if err := strictjson.Check(list); err != nil {
		return nil, err
	}
	var in struct {
		Tools  []json.RawMessage
		Result struct{ Tools []json.RawMessage }
	}
	if err := json.Unmarshal(list, &in); err != nil {
		return nil, err
	}
	var lines []string
	for _, entry := range slices.Concat(in.Tools, in.Result.Tools) {
		o, err := parseObject(entry)
		if err != nil {
			return nil, err
		}
		name, err := o.text("name")
		if err == nil {
			err = actor.CheckMCPName(name)
		}
		if err != nil {
			return nil, err
		}
		digest, err := ToolDigest(entry)
		if err != nil {
			return nil, err
		}
		lines = append(lines, digest+"  "+name)
	}
	if len(lines) == 0 {
		return nil, errors.New("there are no tools in it; the answer to tools/list is expected")
	}
	return lines, nil
}

// ParseReviewed reads the file that such lines make. Lines that begin with # are comments.
func ParseReviewed(r io.Reader) (map[string]string, error) {
	out := map[string]string{}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		if line := lines.Text(); line != "" && line[0] != '#' {
			digest, name, ok := strings.Cut(line, "  ")
			if raw, err := hex.DecodeString(digest); !ok || err != nil || len(raw) != sha256.Size || actor.CheckMCPName(name) != nil || out[name] != "" {
				return nil, fmt.Errorf("%.80q is no digest with the name of a tool, or names one twice", line)
			}
			out[name] = digest
		}
	}
	return out, lines.Err()
}
