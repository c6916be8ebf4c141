package mask

import (
	"bufio"
	"bytes"
	"errors"
	"io"
)

// String replaces in a whole text what detectors find.
func (m *JSON) String(s string) string {
	if m.finder == nil || s == "" {
		return s
	}
	return m.finder.Text(s)
}

// Text copies a text with what detectors find in it replaced. It holds back the last few hundred bytes of a line that isn't over.
// Without a detector there is nothing to put on a text, so it is an error.
func (m *JSON) Text(to *bufio.Writer, from io.Reader) error {
	if m.ByPath() || m.finder == nil {
		return errors.New("the policy masks members of JSON, and this is another text")
	}
	piece, out := make([]byte, 16<<10), []byte(nil)
	for {
		n, err := from.Read(piece)
		if bytes.IndexByte(piece[:n], 0) >= 0 {
			return errors.New("the text holds a zero byte, so it is no text that can be read in one way")
		}
		out = m.finder.Append(out[:0], piece[:n])
		if errors.Is(err, io.EOF) {
			out = m.finder.Finish(out)
		}
		_, _ = to.Write(out)
		if err := to.Flush(); err != nil {
			return err
		}
		if err != nil {
			return ended(err)
		}
	}
}

// ended is nil at the end of what is read.
func ended(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// Lines copies JSON texts that follow each other, one to a line.
func (m *JSON) Lines(to *bufio.Writer, from io.Reader) error {
	d := newDecoder(from, m.keyed.large)
	defer d.close()
	for {
		if err := m.one(to, d); err != nil {
			return ended(err)
		}
		_ = to.WriteByte('\n')
		if err := to.Flush(); err != nil {
			return err
		}
	}
}
