package postgres

import (
	"bytes"
	"io"

	"github.com/deputymesh/deputy/internal/mask"
)

// ReadStartup reads a startup packet as serve does.
func ReadStartup(r io.Reader) (settings map[string]string, err error) {
	p, err := readPacket(r)
	if err != nil {
		return nil, err
	}
	if p.direct != nil {
		return nil, nil
	}
	if p.code == codeCancel {
		_, err = p.cancel()
		return nil, err
	}
	s, err := parseStartup(p)
	if err != nil {
		return nil, err
	}
	return s.settings, nil
}

// ReadFrames reads messages up to an error and says what they were.
func ReadFrames(data []byte, limit int) (kinds []byte, bodies [][]byte, err error) {
	f := newFrames(bytes.NewReader(data), new(buffers))
	for {
		kind, _, err := f.next()
		if err != nil {
			return kinds, bodies, err
		}
		body, err := f.body(kind, limit)
		if err != nil {
			return kinds, bodies, err
		}
		kinds, bodies = append(kinds, kind), append(bodies, bytes.Clone(body))
	}
}

// WellFormedBind checks what follows the names of a Bind.
func WellFormedBind(body []byte) bool { return wellFormedBind(&parts{b: body}) }

// ReadNotice reads the fields of an error.
func ReadNotice(body []byte) error {
	_, err := parseNotice(body)
	return err
}

// MaskRow masks a row of text columns by a plan that hides each.
func MaskRow(description, row []byte) ([]byte, error) {
	fields, err := parseFields(description)
	if err != nil {
		return nil, err
	}
	keyed, err := mask.New(make([]byte, 32))
	if err != nil {
		return nil, err
	}
	p := &maskPlan{keyed: keyed, fields: fields, masks: make([]fieldMask, len(fields))}
	for i := range p.masks {
		p.masks[i] = fieldMask{masker: mask.Redact}
	}
	var out bytes.Buffer
	s := newSink(&out, new(buffers))
	if err := p.row(s, row); err != nil {
		if len(s.buf) > 0 {
			return s.buf, err
		}
		return nil, err
	}
	err = s.flush()
	return out.Bytes(), err
}

// WellFormedCall checks what follows the OID of a FunctionCall.
func WellFormedCall(body []byte) bool { return wellFormedCall(&parts{b: body}) }
