package sqlparse

import (
	"fmt"
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
	if work := rescanned(sql); work > maxRescanned {
		return fmt.Errorf("%w: too many characters of operators and comments in a row", ErrTooComplex)
	}
	return nil
}

// maxRescanned is about a third of a second of the scanner.
const maxRescanned = 64 << 20

// rescanned bounds what the scanner reads again: at each operator and each /* it takes all characters that an operator may
// have, and then gives back what is too much. 60,000 comments side by side take it a minute.
func rescanned(sql string) int {
	work, run := 0, 0
	for i := range len(sql) {
		if strings.IndexByte("~!@#^&|`?+-*/%<>=", sql[i]) >= 0 {
			run++
			work += run
		} else {
			run = 0
		}
	}
	return 2 * work
}
