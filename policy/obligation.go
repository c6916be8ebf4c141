package policy

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Masker is the way a masked column's values are hidden, ordered from weakest to strongest.
type Masker int

// The maskers. The zero value masks nothing and is never part of a rule.
const (
	MaskEmail  Masker = 1 + iota // a***@example.com
	MaskLast4                    // the last four characters
	MaskHash                     // a keyed hash: equal values stay equal within a session
	MaskRedact                   // a fixed text
	MaskNull                     // NULL
)

var maskerNames = map[string]Masker{
	"email": MaskEmail, "last4": MaskLast4, "hash": MaskHash, "redact": MaskRedact, "null": MaskNull,
}

func (m Masker) String() string {
	for name, v := range maskerNames {
		if v == m {
			return name
		}
	}
	return fmt.Sprintf("masker(%d)", int(m))
}

// MaskRule hides one column, or what a path leads to or a detector finds in an answer. An empty Schema means the table of that name in every schema.
type MaskRule struct {
	Schema, Table, Column string
	// Path leads to members of a JSON text, such as $.customer.email, $.items[*].iban or $..email; then there is no table and no column.
	Path string
	// Detect finds values in an answer by what they look like: email, card, iban or phone; then there is neither column nor path.
	Detect string
	Masker Masker
	// Filter allows the column in filters, joins, groups and orders too. Without it a masked column may
	// only be a plain output column.
	Filter bool
}

// OfAnswer says whether the rule is about a text that is answered, not about a column.
func (m MaskRule) OfAnswer() bool { return m.Path != "" || m.Detect != "" }

// What is what the rule hides, without the masker: [schema.]table.column, a path, or detect:kind.
func (m MaskRule) What() string {
	switch {
	case m.Path != "":
		return m.Path
	case m.Detect != "":
		return "detect:" + m.Detect
	case m.Schema != "":
		return m.Schema + "." + m.Table + "." + m.Column
	}
	return m.Table + "." + m.Column
}

func (m MaskRule) String() string {
	s := m.What() + "=" + m.Masker.String()
	if m.Filter {
		s += "+filter"
	}
	return s
}

// Covers reports whether the rule is about the column of that table.
func (m MaskRule) Covers(schema, table, column string) bool {
	return (m.Schema == "" || m.Schema == schema) && m.Table == table && m.Column == column
}

// Recording is how much of a command's text and parameters the record keeps.
type Recording int

// How much is recorded. The zero value says that no policy asked for anything.
const (
	RecordDefault Recording = iota
	RecordDigest            // digests only
	RecordFull              // the text too
)

func (r Recording) String() string {
	return [...]string{"default", "digest", "full"}[r]
}

// Obligations are what the engine must do with an allowed command.
type Obligations struct {
	// Masks holds at most one rule per (schema, table, column), path or detector, sorted.
	Masks []MaskRule
	// MaxRows is the largest number of rows that may be returned; 0 is no limit.
	MaxRows uint64
	Record  Recording
}

// Mask is the rule for one column, and whether there is any. Where a rule with a schema and one without
// both cover the column, both count: the stronger masker, and Filter only if both allow it.
func (o Obligations) Mask(schema, table, column string) (MaskRule, bool) {
	var out MaskRule
	found := false
	for _, m := range o.Masks {
		if !m.Covers(schema, table, column) {
			continue
		}
		if found {
			m = stricter(out, m)
		}
		out, found = m, true
	}
	return out, found
}

// any says whether there are some.
func (o Obligations) any() bool {
	return len(o.Masks) > 0 || o.MaxRows > 0 || o.Record != RecordDefault
}

// And joins the obligations of several decisions: both apply.
func (o Obligations) And(p Obligations) Obligations {
	out := Obligations{MaxRows: o.MaxRows, Record: max(o.Record, p.Record)}
	if o.MaxRows == 0 || (p.MaxRows != 0 && p.MaxRows < o.MaxRows) {
		out.MaxRows = p.MaxRows
	}
	out.Masks = mergeMasks(o.Masks, p.Masks)
	return out
}

func mergeMasks(a, b []MaskRule) []MaskRule {
	switch {
	case len(b) == 0 || len(a) == len(b) && len(a) > 0 && &a[0] == &b[0]: // one policy permits all that a command does, as a rule
		return a
	case len(a) == 0:
		return b
	}
	out := slices.Concat(a, b)
	slices.SortFunc(out, compareMasks)
	merged := out[:1]
	for _, m := range out[1:] {
		last := &merged[len(merged)-1]
		if compareMasks(m, *last) == 0 {
			*last = stricter(*last, m)
			continue
		}
		merged = append(merged, m)
	}
	return merged
}

func compareMasks(a, b MaskRule) int {
	return cmp.Or(cmp.Compare(a.Schema, b.Schema), cmp.Compare(a.Table, b.Table), cmp.Compare(a.Column, b.Column), cmp.Compare(a.Path, b.Path), cmp.Compare(a.Detect, b.Detect))
}

func stricter(a, b MaskRule) MaskRule {
	a.Masker = max(a.Masker, b.Masker)
	a.Filter = a.Filter && b.Filter
	return a
}

// maskItem is `[schema.]table.column=masker[+filter]`. Names are as the catalogue spells them.
var maskItem = regexp.MustCompile(`^(?:([^\s.,=+"]+)\.)?([^\s.,=+"]+)\.([^\s.,=+"]+)=([a-z0-9]+)(\+filter)?$`)

const (
	maxMaskItems = 512
	maxRowLimit  = 1 << 40
)

// compileAnnotations turns the annotations of one policy into obligations. Every error is the problem
// alone; the caller adds file, line and policy.
func compileAnnotations(permit bool, annotations map[string]string) (Obligations, []error) {
	var out Obligations
	var errs []error
	for _, key := range sortedKeys(annotations) {
		value := annotations[key]
		var err error
		switch key {
		case "id":
			if !idPattern.MatchString(value) {
				err = fmt.Errorf("@id(%q): an id is 1 to 64 letters, digits, '.', '_' or '-'", value)
			}
		case "mask":
			out.Masks, err = parseMasks(value)
		case "limit":
			out.MaxRows, err = parseLimit(value)
		case "record":
			out.Record, err = parseRecord(value)
		case "approve":
			err = fmt.Errorf("@approve(%q): approvals aren't there yet; a policy that needs one can't be loaded", value)
		default:
			err = fmt.Errorf("unknown annotation @%s; known are @id, @mask, @limit and @record", key)
		}
		if err == nil && !permit && key != "id" {
			err = fmt.Errorf("@%s stands on a forbid; an obligation belongs to a permit", key)
		}
		if err != nil {
			errs = append(errs, err)
		}
	}
	return out, errs
}

var idPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// ParseMasks reads what stands in @mask.
func ParseMasks(value string) ([]MaskRule, error) { return parseMasks(value) }

func parseMasks(value string) ([]MaskRule, error) {
	items := strings.Split(value, ",")
	if len(items) > maxMaskItems {
		return nil, fmt.Errorf("@mask lists %d columns; at most %d", len(items), maxMaskItems)
	}
	var out []MaskRule
	for _, item := range items {
		rule, ofAnswer, err := parsePathMask(strings.TrimSpace(item))
		if !ofAnswer {
			rule, ofAnswer, err = parseDetectMask(strings.TrimSpace(item))
		}
		if err != nil {
			return nil, fmt.Errorf("@mask(%q): %w", value, err)
		}
		if ofAnswer {
			if slices.ContainsFunc(out, func(o MaskRule) bool { return compareMasks(o, rule) == 0 }) {
				return nil, fmt.Errorf("@mask(%q): %s stands there twice", value, rule.What())
			}
			out = append(out, rule)
			continue
		}
		m := maskItem.FindStringSubmatch(strings.TrimSpace(item))
		if m == nil {
			return nil, fmt.Errorf("@mask(%q): %q should read [schema.]table.column=masker[+filter]; for answers of services $.path=masker or detect:kind=masker", value, strings.TrimSpace(item))
		}
		masker, ok := maskerNames[m[4]]
		if !ok {
			return nil, fmt.Errorf("@mask(%q): unknown masker %q; known are email, last4, hash, redact and null", value, m[4])
		}
		rule = MaskRule{Schema: m[1], Table: m[2], Column: m[3], Masker: masker, Filter: m[5] != ""}
		for _, o := range out {
			if o.Schema == rule.Schema && o.Table == rule.Table && o.Column == rule.Column {
				return nil, fmt.Errorf("@mask(%q): column %s.%s stands there twice", value, rule.Table, rule.Column)
			}
		}
		out = append(out, rule)
	}
	slices.SortFunc(out, compareMasks)
	return out, nil
}

func parseLimit(value string) (uint64, error) {
	digits, ok := strings.CutPrefix(value, "rows=")
	n, err := strconv.ParseUint(digits, 10, 64)
	if !ok || err != nil || n == 0 || n > maxRowLimit || strconv.FormatUint(n, 10) != digits {
		return 0, fmt.Errorf(`@limit(%q) should read "rows=<number>", such as "rows=1000"`, value)
	}
	return n, nil
}

func parseRecord(value string) (Recording, error) {
	switch value {
	case "full":
		return RecordFull, nil
	case "digest":
		return RecordDigest, nil
	}
	return RecordDefault, fmt.Errorf(`@record(%q) should read "full" or "digest"`, value)
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
