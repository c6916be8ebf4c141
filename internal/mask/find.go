package mask

import (
	"bytes"
	"math/bits"
	"slices"
)

// A Finding says how what a detector finds is replaced.
type Finding struct {
	Detector Detector
	Masker   Masker
}

// A Finder replaces what detectors find in texts. A text may come in pieces of any length: where they end makes no difference, so a value
// that is split is found. It keeps at most a few hundred bytes back, and nothing beyond the end of a line. Values that overlap are
// replaced as one, with nothing kept, as is a value with another inside for which the masker is stronger. It is for one goroutine at a time.
type Finder struct {
	keyed  *Keyed
	rules  []Finding
	counts []int64
	wanted uint8 // a bit per detector that has a rule
	ruleOf [detectors]int

	buf  []byte // from a few bytes before pos, or from the beginning of the open region
	pos  int    // everything before is decided
	line int    // where the last end of a line stands

	open  bool // a region of buf is to be replaced
	from  int
	end   int
	rule  int  // of the region
	whole bool // nothing is kept of the region, and its bytes may be gone

	// The next at sign that letters of a local part lead to from pos, and where its address ends; 0 if it is none. Holds up to at.
	at, atEnd int
}

// Finder makes one. There is one rule per detector; of more the strongest counts.
func (k *Keyed) Finder(rules []Finding) *Finder {
	f := &Finder{keyed: k, rules: slices.Clone(rules), counts: make([]int64, len(rules))}
	for i, r := range f.rules {
		d := indexOf(r.Detector)
		if f.wanted&(1<<d) == 0 || stronger(r.Masker, f.rules[f.ruleOf[d]].Masker) {
			f.ruleOf[d] = i
		}
		f.wanted |= 1 << d
	}
	return f
}

// Count is how many values were replaced by a rule, by its index.
func (f *Finder) Count(rule int) int64 { return f.counts[rule] }

// Text replaces what is found in a whole text.
func (f *Finder) Text(s string) string {
	return string(f.Finish(f.Append(nil, []byte(s))))
}

// Append takes the next piece of a text, and appends to dst what may go on by now.
func (f *Finder) Append(dst, piece []byte) []byte {
	f.buf = append(f.buf, piece...)
	// What could belong to a value that goes on waits; values don't go over the end of a line.
	f.line = bytes.LastIndexByte(f.buf, '\n')
	dst = f.scan(dst, max(len(f.buf)-maxLook, f.line+1), false)
	f.compact()
	return dst
}

// Finish ends the text, and appends the rest of it to dst. Another text may follow.
func (f *Finder) Finish(dst []byte) []byte {
	dst = f.close(f.scan(dst, len(f.buf), true))
	f.buf, f.pos, f.at, f.atEnd = f.buf[:0], 0, 0, 0
	return dst
}

// scan decides about what comes before ready.
func (f *Finder) scan(dst []byte, ready int, last bool) []byte {
	for ; f.pos < ready; f.pos++ {
		if f.open && f.pos >= f.end {
			dst = f.close(dst)
		}
		c := f.buf[f.pos]
		for may := begins[c] & f.wanted; may != 0; may &= may - 1 {
			d := bits.TrailingZeros8(may)
			if end := f.match(d, c, last); end > f.pos {
				f.found(f.ruleOf[d], end)
			}
		}
		if !f.open {
			dst = append(dst, f.buf[f.pos])
		}
	}
	return dst
}

// found opens a region at pos, or says what becomes of the open one.
func (f *Finder) found(rule, end int) {
	switch {
	case !f.open:
		f.open, f.from, f.end, f.rule, f.whole = true, f.pos, end, rule, false
		f.counts[rule]++
	case end > f.end:
		f.whole, f.end = true, end
		f.counts[rule]++
	case stronger(f.rules[rule].Masker, f.rules[f.rule].Masker):
		f.whole = true
	}
}

// stronger orders maskers by how little they keep.
func stronger(a, b Masker) bool {
	order := []Masker{Email, Last4, Hash, Redact, Null}
	return slices.Index(order, a) > slices.Index(order, b)
}

// close ends the open region, if there is one.
func (f *Finder) close(dst []byte) []byte {
	if !f.open {
		return dst
	}
	f.open = false
	if f.whole {
		return append(dst, stars...)
	}
	r, value := f.rules[f.rule], f.buf[f.from:f.end]
	if r.Detector != DetectEmail && (r.Masker == Hash || r.Masker == Last4) {
		// Equal numbers are equal however they are written.
		value = slices.DeleteFunc(bytes.ToUpper(value), func(c byte) bool { return !isAlnum(c) })
	}
	return append(dst, f.keyed.text(r.Masker, value)...)
}

// compact forgets what isn't needed any more.
func (f *Finder) compact() {
	keep := max(f.pos-escapeLength, 0) // some detectors look at what came before
	if f.open && !f.whole {
		keep = min(keep, f.from)
	}
	if keep == 0 {
		return
	}
	f.buf = append(f.buf[:0], f.buf[keep:]...)
	f.pos -= keep
	f.from -= keep
	f.end -= keep
	f.at = max(f.at-keep, 0)
	f.atEnd -= keep
}

// match is where a value ends that begins at pos with c, or 0.
func (f *Finder) match(detector int, c byte, last bool) int {
	switch detector {
	case email0:
		if c == '"' {
			return quotedEnd(f.buf, f.pos)
		}
		return f.emailEnd(last)
	case card0:
		return cardEnd(f.buf, f.pos)
	case iban0:
		return ibanEnd(f.buf, f.pos)
	default:
		return phoneEnd(f.buf, f.pos)
	}
}

// emailEnd is where an address ends whose local part begins at pos, or 0. Local parts of one run of letters lead to one at sign, so it is looked
// for once, not for every letter of a long run.
func (f *Finder) emailEnd(last bool) int {
	if f.pos >= f.at {
		f.lookForAt(last)
	}
	if f.atEnd > f.at && f.at-f.pos <= maxLocal {
		return f.atEnd
	}
	return 0
}

func (f *Finder) lookForAt(last bool) {
	f.atEnd = 0
	for j := f.pos; ; j++ {
		sure := last || j+maxAtSign+maxDomain+1 < len(f.buf) || j < f.line
		if j >= len(f.buf) || !sure && j-f.pos > maxLocal {
			// What comes next isn't here yet: it is too far away for whatever begins more than a local part before.
			f.at = max(j-maxLocal, f.pos+1)
			if last {
				f.at = j
			}
			return
		}
		if n := atSign(f.buf[j:]); n > 0 && j > f.pos {
			if end := domainEnd(f.buf, j+n); end > 0 {
				f.at, f.atEnd = j, end
				return
			}
		}
		if !isLocal(f.buf[j]) {
			f.at = j + 1
			return
		}
	}
}
