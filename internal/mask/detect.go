package mask

import (
	"bytes"
	"fmt"
)

// A Detector finds values in a text by what they look like. It knows a value as people write it, not in an encoding: base64, a value cut
// into two members, or tags between its letters aren't seen. No value that is found goes over the end of a line.
type Detector string

// Detectors, spelled as in policies.
const (
	// DetectEmail finds addresses: a local part of up to 256 bytes of what RFC 5322 (atext, non-ASCII letters, a quoted string) allows,
	// "@" (also as %40, &#64;, &#x40; and \u0040), and a host of two labels or more, or an address in brackets.
	DetectEmail Detector = "email"
	// DetectCard finds numbers of payment cards: 13 to 19 digits that begin with 2 to 6, single spaces or hyphens between them, with
	// the check digit of ISO/IEC 7812 (Luhn). One in ten numbers of such a length has it by chance.
	DetectCard Detector = "card"
	// DetectIBAN finds account numbers of ISO 13616: two letters, two digits, 11 to 30 letters or digits, single spaces or hyphens
	// between them, with the check of ISO 7064 (mod 97-10).
	DetectIBAN Detector = "iban"
	// DetectPhone finds telephone numbers in international form (E.164): "+" (also as %2B) and 8 to 15 digits, with up to two
	// spaces, hyphens, dots, slashes or brackets between them. National forms aren't found: nothing tells them from other numbers.
	DetectPhone Detector = "phone"
)

// ParseDetector gives the detector that a policy names.
func ParseDetector(name string) (Detector, error) {
	switch d := Detector(name); d {
	case DetectEmail, DetectCard, DetectIBAN, DetectPhone:
		return d, nil
	default:
		return "", fmt.Errorf("unknown detector %q: there are email, card, iban and phone", name)
	}
}

// Limits of what detectors look at.
const (
	maxLocal   = 256
	maxAtSign  = 6
	maxLiteral = 64
	// maxLook is more than any detector looks ahead.
	maxLook = maxLocal + maxAtSign + maxDomain + 16
)

// The detectors by number, and how many there are.
const (
	email0 = iota
	card0
	iban0
	phone0
	detectors
)

func indexOf(d Detector) int {
	switch d {
	case DetectEmail:
		return email0
	case DetectCard:
		return card0
	case DetectIBAN:
		return iban0
	default:
		return phone0
	}
}

// begins has a bit for each detector whose values may begin with a byte.
var begins = func() (out [256]uint8) {
	for i := range out {
		c := byte(i)
		if (isLocal(c) || c == '"') && !continues(c) {
			out[i] |= 1 << email0
		}
		if c >= '2' && c <= '6' {
			out[i] |= 1 << card0
		}
		if isLetter(c) {
			out[i] |= 1 << iban0
		}
		if c == '+' || c == '%' {
			out[i] |= 1 << phone0
		}
	}
	return out
}()

func isDigit(c byte) bool  { return c >= '0' && c <= '9' }
func isLetter(c byte) bool { return c|0x20 >= 'a' && c|0x20 <= 'z' }
func isAlnum(c byte) bool  { return isDigit(c) || isLetter(c) }

// continues says whether a byte is inside a character of UTF-8: nothing begins or ends before it.
func continues(c byte) bool { return c&0xc0 == 0x80 }

// isLocal says whether a byte may stand in a local part: atext and dots (RFC 5322 §3.2.3), and what isn't ASCII (RFC 6531).
func isLocal(c byte) bool {
	if isAlnum(c) || c >= 0x80 {
		return true
	}
	switch c {
	case '.', '!', '#', '$', '%', '&', '\'', '*', '+', '-', '/', '=', '?', '^', '_', '`', '{', '|', '}', '~':
		return true
	}
	return false
}

// atSign is how many bytes of b are an at sign in one of the spellings that are known, or 0.
func atSign(b []byte) int {
	if len(b) == 0 {
		return 0
	}
	var spelled string
	switch b[0] {
	case '@':
		return 1
	case '%':
		spelled = "%40"
	case '\\':
		spelled = `\u0040`
	case '&':
		if spelled = "&#64;"; len(b) > 2 && b[2]|0x20 == 'x' {
			spelled = "&#x40;"
		}
	}
	if spelled == "" || len(b) < len(spelled) {
		return 0
	}
	for i := range len(spelled) {
		if b[i] != spelled[i] && b[i]|0x20 != spelled[i] {
			return 0
		}
	}
	return len(spelled)
}

// domainEnd is where the host of an address ends that begins at i, or 0.
func domainEnd(b []byte, i int) int {
	if i < len(b) && b[i] == '[' {
		for j := i + 1; j < len(b) && j-i <= maxLiteral; j++ {
			if b[j] == ']' && j > i+1 {
				return j + 1
			}
			if !isAlnum(b[j]) && b[j] != '.' && b[j] != ':' {
				return 0
			}
		}
		return 0
	}
	end, labels := 0, 0
	limit := min(len(b), i+maxDomain)
	for at := i; at < limit; {
		j := at
		for j < limit && (isAlnum(b[j]) || b[j] == '-' || b[j] >= 0x80) {
			j++
		}
		for j < len(b) && j > at && continues(b[j]) {
			j--
		}
		if j == at {
			break
		}
		labels++
		if labels > 1 && j-at > 1 && !isDigit(b[at]) && b[at] != '-' {
			end = j
		}
		if j >= limit || b[j] != '.' {
			break
		}
		at = j + 1
	}
	return end
}

// quotedEnd is where an address ends whose local part is the quoted string at i, or 0.
func quotedEnd(b []byte, i int) int {
	for j := i + 1; j < len(b) && j-i < maxLocal; j++ {
		switch {
		case b[j] < ' ':
			return 0
		case b[j] == '\\':
			if j++; j < len(b) && b[j] < ' ' {
				return 0 // the end of a line, which nothing goes over
			}
		case b[j] == '"':
			if n := atSign(b[j+1:]); n > 0 {
				return domainEnd(b, j+1+n)
			}
			return 0
		}
	}
	return 0
}

// gap is how many bytes of a space or hyphen between groups stand at i.
func gap(b []byte, i int) int {
	switch {
	case i >= len(b):
		return 0
	case b[i] == ' ' || b[i] == '-':
		return 1
	case b[i] == 0xc2 && i+1 < len(b) && b[i+1] == 0xa0: // no-break space
		return 2
	case b[i] == '\\' && len(b) >= i+6 && string(b[i:i+4]) == `\u00` && b[i+4]|0x20 == 'a' && b[i+5] == '0': // and as JSON in a string spells it
		return 6
	}
	return 0
}

// escapeLength is how many bytes the longest escape of JSON has.
const escapeLength = 6

// afterEscape says whether an escape of JSON ends before i: a value that stands in a JSON text inside of a string often follows one, and its last
// byte is a letter or digit that isn't a part of what it means.
func afterEscape(b []byte, i int) bool {
	if i >= 2 && b[i-2] == '\\' && bytes.IndexByte([]byte("nrtbf"), b[i-1]) >= 0 {
		return true
	}
	if i < escapeLength || b[i-6] != '\\' || b[i-5] != 'u' {
		return false
	}
	for _, c := range b[i-4 : i] {
		if !isDigit(c) && (c|0x20 < 'a' || c|0x20 > 'f') {
			return false
		}
	}
	return true
}

// cardEnd is where the longest card number that begins at i ends, or 0.
func cardEnd(b []byte, i int) int {
	if i > 0 && isDigit(b[i-1]) && !afterEscape(b, i) || i > 1 && b[i-1] == '.' && isDigit(b[i-2]) {
		return 0
	}
	// Luhn doubles every second digit from the right: both sums are kept, and the number of digits says which one counts.
	end, n := 0, 0
	var doubled [2]int // doubled[p]: the sum with the digits at positions of parity p doubled
	for j := i; j < len(b) && isDigit(b[j]) && n < 19; {
		d := int(b[j] - '0')
		twice := 2 * d
		if twice > 9 {
			twice -= 9
		}
		doubled[n%2] += twice
		doubled[1-n%2] += d
		n++
		j++
		if j < len(b) && isDigit(b[j]) {
			continue
		}
		if n >= 13 && doubled[n%2]%10 == 0 {
			end = j
		}
		j += gap(b, j)
	}
	return end
}

// ibanEnd is where the longest IBAN that begins at i ends, or 0.
func ibanEnd(b []byte, i int) int {
	if i > 0 && isAlnum(b[i-1]) && !afterEscape(b, i) {
		return 0
	}
	var chars [34]byte
	end, n := 0, 0
	for j := i; j < len(b) && isAlnum(b[j]) && n < len(chars); {
		if n < 4 && (n < 2) != isLetter(b[j]) {
			return 0
		}
		chars[n] = b[j]
		n++
		j++
		if j < len(b) && isAlnum(b[j]) {
			continue
		}
		if n >= 15 && checks(chars[:n]) {
			end = j
		}
		j += gap(b, j)
	}
	return end
}

// checks is ISO 7064 mod 97-10: the first four characters go to the end, letters count from 10.
func checks(chars []byte) bool {
	rest := 0
	for i := range chars {
		c := chars[(i+4)%len(chars)]
		if isDigit(c) {
			rest = (rest*10 + int(c-'0')) % 97
		} else {
			rest = (rest*100 + int(c|0x20-'a') + 10) % 97
		}
	}
	return rest == 1
}

// phoneEnd is where the longest telephone number that begins at i ends, or 0.
func phoneEnd(b []byte, i int) int {
	j := i + 1
	if b[i] == '%' {
		if len(b) < i+3 || b[i+1] != '2' || b[i+2]|0x20 != 'b' {
			return 0
		}
		j = i + 3
	} else if i > 0 && isAlnum(b[i-1]) && !afterEscape(b, i) {
		return 0
	}
	if j >= len(b) || b[j] < '1' || b[j] > '9' {
		return 0
	}
	end, n := 0, 0
	for j < len(b) && isDigit(b[j]) && n < 15 {
		n++
		j++
		if j < len(b) && isDigit(b[j]) {
			continue
		}
		if n >= 8 {
			end = j
		}
		for range 2 {
			if g := gap(b, j); g > 0 {
				j += g
			} else if j < len(b) && (b[j] == '.' || b[j] == '/' || b[j] == '(' || b[j] == ')') {
				j++
			}
		}
	}
	return end
}
