//go:build cgo && !linux

package sqlparse

import "errors"

// boundProcess refuses: only on Linux is the parsing process bounded.
func boundProcess() error { return errors.New("SQL is parsed on Linux only") }
