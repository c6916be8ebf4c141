package sqlparse

import "strings"

// templateKey gives sql with its plain numbers and strings replaced by placeholders that no text can
// hold, and false for whatever a simple scanner could read otherwise than PostgreSQL: comments,
// dollar quotes, E, U&, B, X and N strings, backslashes, strings continued on the next line, letters
// beyond ASCII outside of quotes, unusual numbers. Two texts with one key have the same tokens but
// for the values of constants.
func templateKey(sql string) (string, bool) {
	var b strings.Builder
	b.Grow(len(sql) + 8)
	for i := 0; i < len(sql); {
		n, ok := scanOne(&b, sql, i)
		if !ok {
			return "", false
		}
		i = n
	}
	return b.String(), true
}

// scanOne copies the token at i and gives the index behind it.
func scanOne(b *strings.Builder, sql string, i int) (int, bool) {
	c := sql[i]
	end := i + 1
	switch {
	case c == '\'':
		return scanString(b, sql, i)
	case c == '"':
		close := strings.IndexByte(sql[end:], '"')
		if close < 0 {
			return 0, false
		}
		// A doubled quote is read as two identifiers side by side: copied all the same.
		end += close + 1
	case isLetter(c):
		for end < len(sql) && (isLetter(sql[end]) || isDigit(sql[end]) || sql[end] == '$') {
			end++
		}
		if end < len(sql) && sql[end] == '\'' { // E'…', N'…'
			return 0, false
		}
	case isDigit(c):
		return scanNumber(b, sql, i)
	case c == '$': // $1, never $tag$
		for end < len(sql) && isDigit(sql[end]) {
			end++
		}
		if end == i+1 || end < len(sql) && (isLetter(sql[end]) || sql[end] == '$' || sql[end] == '\'') {
			return 0, false
		}
	case c >= 0x80, c == '\\', c < ' ' && c != '\n' && c != '\t' && c != '\r':
		return 0, false
	case end < len(sql):
		switch two := sql[i : i+2]; {
		case two == "--", two == "/*", two == "&'", two == `&"`:
			return 0, false
		case c == '.' && (isDigit(sql[end]) || sql[end] == '.'):
			return 0, false
		}
	}
	if end < len(sql) && sql[end] >= 0x80 {
		return 0, false
	}
	b.WriteString(sql[i:end])
	return end, true
}

// scanString replaces '…' with a placeholder.
func scanString(b *strings.Builder, sql string, i int) (int, bool) {
	end := i + 1
	for {
		n := strings.IndexAny(sql[end:], `'\`)
		if n < 0 || sql[end+n] == '\\' {
			return 0, false
		}
		end += n + 1
		if end < len(sql) && sql[end] == '\'' { // '' inside
			end++
			continue
		}
		break
	}
	// 'a' and, on a later line, 'b' are one constant.
	if rest := strings.TrimLeft(sql[end:], " \t\r\n"); strings.HasPrefix(rest, "'") {
		return 0, false
	}
	b.WriteString("\x00s")
	return end, true
}

// scanNumber replaces a plain number with a placeholder. A number of ten digits or more may be too
// large for an integer and counts as one with a fraction, which the grammar tells from an integer.
func scanNumber(b *strings.Builder, sql string, i int) (int, bool) {
	end, placeholder := i, "\x00i"
	for end < len(sql) && isDigit(sql[end]) {
		end++
	}
	if end-i > 9 {
		placeholder = "\x00f"
	}
	if end+1 < len(sql) && sql[end] == '.' && isDigit(sql[end+1]) {
		placeholder = "\x00f"
		for end++; end < len(sql) && isDigit(sql[end]); end++ {
		}
	}
	if end < len(sql) {
		if c := sql[end]; isLetter(c) || c == '.' || c == '$' || c == '\'' || c >= 0x80 {
			return 0, false
		}
	}
	b.WriteString(placeholder)
	return end, true
}

func isLetter(c byte) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '_' }

func isDigit(c byte) bool { return c >= '0' && c <= '9' }
