//go:build !cgo

package sqlparse

import "io"

// available says that this build can parse.
const available = false

// ChildMain refuses: this build has no parser.
func ChildMain(io.Reader, io.Writer) error { return ErrNoParser }
