package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"syscall"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// maxConfigBytes bounds a configuration file.
const maxConfigBytes = 1 << 20

// loadConfig reads one YAML file into a T, strictly: unknown and duplicate keys, values of another kind, a
// second document and trailing bytes are errors that name file, line and column and what would be right, and
// repeat no value, which could be a password. check, if not nil, sees the decoded value;
// what it returns becomes an error that names the file (use fieldError to name the place as well).
func loadConfig[T any](path string, check func(*T) error) (*T, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("reading the configuration: %w", err)
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxConfigBytes+1))
	if err != nil {
		return nil, fmt.Errorf("reading the configuration %s: %w", path, err)
	}
	if len(raw) > maxConfigBytes {
		return nil, fmt.Errorf("configuration %s: larger than %d bytes; split it or check the path", path, maxConfigBytes)
	}
	return parseConfig(path, raw, check)
}

// parseConfig is loadConfig for what stands, or is about to stand, in the file.
func parseConfig[T any](path string, raw []byte, check func(*T) error) (*T, error) {
	file, err := parser.ParseBytes(raw, 0)
	if err != nil {
		return nil, fmt.Errorf("configuration %w", placed(path, err))
	}
	switch {
	case len(file.Docs) == 0 || file.Docs[0].Body == nil || file.Docs[0].Body.Type() == ast.CommentType:
		return nil, fmt.Errorf("configuration %s: the file is empty; `deputy init` writes one to start from", path)
	case len(file.Docs) > 1:
		return nil, fmt.Errorf("configuration %s: one YAML document is expected, more was found", path)
	}
	cfg := new(T)
	if err := checkShape(file.Docs[0].Body, reflect.TypeFor[T]()); err != nil {
		return nil, fmt.Errorf("configuration %w", placed(path, err))
	}
	if err := yaml.NewDecoder(bytes.NewReader(raw), yaml.Strict()).Decode(cfg); err != nil {
		return nil, fmt.Errorf("configuration %w", placed(path, err))
	}
	if check == nil {
		return cfg, nil
	}
	if err := check(cfg); err != nil {
		var fe *fieldErr
		if errors.As(err, &fe) {
			return nil, fmt.Errorf("configuration %s", fe.locate(path, raw))
		}
		return nil, fmt.Errorf("configuration %s: %w", path, err)
	}
	return cfg, nil
}

// fieldErr is a wrong value at a YAML path.
type fieldErr struct {
	path string
	want string
}

func (e *fieldErr) Error() string { return e.path + ": " + e.want }

// fieldError says what is wrong with the value at a YAML path (such as "$.targets[0].name") and what
// would be right. loadConfig adds file, line and column.
func fieldError(path, format string, args ...any) error {
	return &fieldErr{path: path, want: fmt.Sprintf(format, args...)}
}

func (e *fieldErr) locate(file string, raw []byte) string {
	p, err := yaml.PathString(e.path)
	if err != nil {
		return fmt.Sprintf("%s: %s: %s", file, e.path, e.want)
	}
	node, err := p.ReadNode(bytes.NewReader(raw))
	if err != nil || node == nil || node.GetToken() == nil || node.GetToken().Position == nil {
		return fmt.Sprintf("%s: %s (missing): %s", file, e.path, e.want)
	}
	pos := node.GetToken().Position
	return fmt.Sprintf("%s:%d:%d: %s: %s", file, pos.Line, pos.Column, e.path, e.want)
}

// beside makes a path of a configuration file absolute, relative to the file's folder.
func beside(configPath, p string) string {
	if p == "" || filepath.IsAbs(p) {
		return p
	}
	return filepath.Join(filepath.Dir(configPath), p)
}

// counted is a number with its noun.
func counted(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// portTaken adds what to do about an address that is in use.
func portTaken(err error) error {
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("%w; another program has this port: stop it, or set another one here and where others name it", err)
	}
	return err
}
