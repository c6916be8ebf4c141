package postgres

import (
	"fmt"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/mask"
	"github.com/deputymesh/deputy/policy"
)

// field is one column of a RowDescription.
type field struct {
	name   string
	table  uint32
	column int16
	typ    uint32
	format int16
}

const maxFields = 1664 // MaxTupleAttributeNumber

// parseFields reads a RowDescription.
func parseFields(body []byte) ([]field, error) {
	p := parts{b: body}
	n := p.int16()
	if n < 0 || n > maxFields {
		return nil, protocolError("the target described %d columns", n)
	}
	fields := make([]field, n)
	for i := range fields {
		fields[i] = field{name: p.cstring(), table: p.uint32(), column: int16(p.int16()), typ: p.uint32()}
		p.take(6) // type size and modifier
		fields[i].format = int16(p.int16())
	}
	if !p.done() {
		return nil, protocolError("the target's row description can't be read")
	}
	return fields, nil
}

// fieldMask says what happens to one column of a result.
type fieldMask struct {
	masker mask.Masker // "" passes the value
	rule   string      // for the record
	column string
	values int64
}

// maskPlan says what happens to each column of a result.
type maskPlan struct {
	keyed  *mask.Keyed
	fields []field
	masks  []fieldMask
}

// withheld is the rule's name where no rule allows the value to pass.
const withheld = "withheld"

// planMasks decides about each field of a result; nil if all pass. The origin that the target gives decides; where it gives
// none, what the text shows.
func planMasks(d *decision, ob policy.Obligations, snap *snapshot, fields []field, keyed *mask.Keyed) *maskPlan {
	if len(ob.Masks) == 0 {
		return nil
	}
	x := expose(d, ob)
	plan := &maskPlan{keyed: keyed, fields: fields, masks: make([]fieldMask, len(fields))}
	acts := false
	for i, f := range fields {
		m := plan.decide(x, ob, snap, i, f)
		plan.masks[i] = m
		acts = acts || m.masker != ""
	}
	if !acts {
		return nil
	}
	return plan
}

func (p *maskPlan) decide(x *exposure, ob policy.Obligations, snap *snapshot, i int, f field) fieldMask {
	hide := fieldMask{masker: mask.Null, rule: withheld, column: f.name}
	if f.table == 0 {
		if x.outputClean(i, len(p.fields)) {
			return fieldMask{}
		}
		return hide
	}
	r := snap.byOID[f.table]
	if r == nil {
		// Made since the catalogue was read, perhaps in the open transaction.
		return hide
	}
	if f.column <= 0 {
		if f.column < 0 || !hasMasks(ob, r) {
			return fieldMask{}
		}
		return hide
	}
	name, ok := r.columns[f.column]
	if !ok {
		if hasMasks(ob, r) {
			return hide
		}
		return fieldMask{}
	}
	if m, ok := rule(ob, r, name); ok {
		masker, err := mask.Parse(m.Masker.String())
		if err != nil || masker == "" {
			masker = mask.Null
		}
		return fieldMask{masker: masker, rule: m.Masker.String(), column: r.String() + "." + name}
	}
	return fieldMask{}
}

// row writes a DataRow anew with its values masked.
func (p *maskPlan) row(out *sink, body []byte) error {
	b := parts{b: body}
	n := b.int16()
	if n != len(p.fields) {
		return protocolError("the target sent a row of %d columns where it had described %d", n, len(p.fields))
	}
	out.begin('D')
	out.int16(n)
	if err := p.values(out, &b); err != nil {
		// What is half built doesn't leave.
		out.buf = out.buf[:out.start]
		return err
	}
	out.end()
	return nil
}

func (p *maskPlan) values(out *sink, b *parts) error {
	for i := range p.fields {
		size := b.int32()
		if size < -1 {
			return errBadRow
		}
		var value []byte
		if size >= 0 {
			value = b.take(size)
			if b.bad {
				return errBadRow
			}
		}
		m := &p.masks[i]
		null := size < 0
		if m.masker != "" && !null {
			var err error
			m.values++
			value, null, err = p.keyed.Apply(m.masker, value, mask.Format(p.fields[i].format), p.fields[i].typ)
			if err != nil {
				return fmt.Errorf("masking %s: %w", m.column, err)
			}
		}
		if null {
			out.int32(-1)
			continue
		}
		out.int32(len(value))
		out.bytes(value)
	}
	if !b.done() {
		return errBadRow
	}
	return nil
}

var errBadRow = protocolError("the target sent a row that can't be read")

func (p *maskPlan) counts() []audit.MaskedCount {
	var out []audit.MaskedCount
	for _, m := range p.masks {
		if m.values > 0 {
			out = append(out, audit.MaskedCount{Rule: m.rule, Column: m.column, Values: m.values})
		}
	}
	return out
}
