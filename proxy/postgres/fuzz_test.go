package postgres_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/deputymesh/deputy/proxy/postgres"
)

// FuzzStartup: no packet reads further than it says, and no setting gets through that decisions rest on.
func FuzzStartup(f *testing.F) {
	f.Add(startupPacket(3<<16, "user", "a", "database", "b"))
	f.Add(startupPacket(3<<16|2, "user", "a", "_pq_.x", "1", "options", "-c statement_timeout=1 --lock-timeout=2"))
	f.Add(append(be32(16), append(be32(80877102), 1, 2, 3, 4, 5, 6, 7, 8)...))
	f.Add(be32(8))
	f.Fuzz(func(t *testing.T, data []byte) {
		const tail = "not to be read"
		r := bytes.NewReader(append(bytes.Clone(data), tail...))
		settings, err := postgres.ReadStartup(r)
		if err == nil && len(data) >= 4 && data[0] != 0x16 {
			if want := len(data) + len(tail) - int(binary.BigEndian.Uint32(data)); r.Len() != want {
				t.Errorf("%d bytes are left, want %d", r.Len(), want)
			}
		}
		for name := range settings {
			switch name {
			case "search_path", "role", "session_authorization", "client_encoding", "standard_conforming_strings", "session_replication_role", "application_name":
				t.Errorf("%q got through", name)
			}
		}
	})
}

// FuzzFrames: framing agrees with itself however the bytes are, and never gives more than the limit.
func FuzzFrames(f *testing.F) {
	q, _ := (&pgproto3.Query{String: "select 1"}).Encode(nil)
	s, _ := (&pgproto3.Sync{}).Encode(nil)
	f.Add(append(q, s...))
	f.Add([]byte("Q\xff\xff\xff\xff"))
	f.Add(append([]byte("d\x00\x00\xa0\x04"), make([]byte, 0xa000)...))
	f.Fuzz(func(t *testing.T, data []byte) {
		const limit = 1 << 16
		kinds, bodies, err := postgres.ReadFrames(data, limit)
		if err == nil {
			t.Fatal("no end")
		}
		var again []byte
		for i, b := range bodies {
			if len(b) > limit {
				t.Fatalf("a body of %d bytes", len(b))
			}
			again = append(again, kinds[i])
			again = binary.BigEndian.AppendUint32(again, uint32(len(b)+4))
			again = append(again, b...)
		}
		if !bytes.HasPrefix(data, again) {
			t.Error("the messages aren't what was sent")
		}
	})
}

// FuzzBind: what passes for a Bind is one for pgproto3 as well.
func FuzzBind(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 0, 0})
	f.Add([]byte{0, 1, 0, 1, 0, 1, 0, 0, 0, 2, 'a', 'b', 0, 1, 0, 1})
	f.Add([]byte{0, 0, 0, 1, 255, 255, 255, 255, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		if !postgres.WellFormedBind(data) {
			return
		}
		var b pgproto3.Bind
		if err := b.Decode(append([]byte{0, 0}, data...)); err != nil {
			t.Errorf("pgproto3 refuses it: %v", err)
		}
	})
}

// FuzzMaskRow: a row comes out whole with nothing of its values, or not at all.
func FuzzMaskRow(f *testing.F) {
	describe := func(n int) []byte {
		d := &pgproto3.RowDescription{}
		for range n {
			d.Fields = append(d.Fields, pgproto3.FieldDescription{Name: []byte("c"), DataTypeOID: 25})
		}
		b, _ := d.Encode(nil)
		return b[5:]
	}
	row := func(values ...[]byte) []byte {
		b, _ := (&pgproto3.DataRow{Values: values}).Encode(nil)
		return b[5:]
	}
	f.Add(describe(2), row([]byte("SECRET"), nil))
	f.Add(describe(1), row([]byte("SECRET"), []byte("SECRET")))
	f.Add(describe(1), []byte{0, 1, 0x7f, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, description, data []byte) {
		out, err := postgres.MaskRow(description, data)
		if err != nil {
			if len(out) > 0 {
				t.Errorf("%q is left after %v", out, err)
			}
			return
		}
		var d pgproto3.DataRow
		if len(out) < 5 || out[0] != 'D' || int(binary.BigEndian.Uint32(out[1:])) != len(out)-1 {
			t.Fatalf("not a row: %q", out)
		}
		if err := d.Decode(out[5:]); err != nil {
			t.Fatal(err)
		}
		for _, v := range d.Values {
			if v != nil && string(v) != "****" {
				t.Errorf("value %q", v)
			}
		}
		if err := postgres.ReadNotice(data); err == nil && len(data) == 0 {
			t.Error("an empty notice is none")
		}
	})
}

// FuzzFunctionCall: what is taken for well formed is read by pgproto3 to its end too.
func FuzzFunctionCall(f *testing.F) {
	for _, m := range []pgproto3.FunctionCall{
		{}, {ArgFormatCodes: []uint16{1}, Arguments: [][]byte{{0, 0, 0, 1}, nil}, ResultFormatCode: 1},
		{ArgFormatCodes: []uint16{0, 1}, Arguments: [][]byte{[]byte("a"), {}}},
	} {
		b, _ := m.Encode(nil)
		f.Add(b[9:]) // behind kind, length and OID
	}
	f.Add([]byte("\x00\x02\x00\x01\x00\x00\x00\x01\xff\xff\xff\xff\x00\x00"))
	f.Fuzz(func(t *testing.T, body []byte) {
		if !postgres.WellFormedCall(body) {
			return
		}
		// pgproto3 refuses formats that PostgreSQL itself refuses only when it runs the function.
		body = bytes.Clone(body)
		formats := int(binary.BigEndian.Uint16(body))
		for i := range formats {
			binary.BigEndian.PutUint16(body[2+2*i:], uint16(i&1))
		}
		binary.BigEndian.PutUint16(body[len(body)-2:], 1)
		var m pgproto3.FunctionCall
		if err := m.Decode(append([]byte{0, 0, 0, 1}, body...)); err != nil {
			t.Errorf("%x: %v", body, err)
		}
	})
}
