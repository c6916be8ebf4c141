package sqlparse

import (
	"strings"
	"unicode/utf8"
)

// checkText refuses a text that parser and server could read differently.
func checkText(sql string) error {
	// The parser takes a C string: a NUL would end the text for it and not for the server.
	if strings.IndexByte(sql, 0) >= 0 {
		return &SyntaxError{Message: "the text contains a NUL byte"}
	}
	if !utf8.ValidString(sql) {
		return &SyntaxError{Message: "the text is not valid UTF-8"}
	}
	return nil
}
