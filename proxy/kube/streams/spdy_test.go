package streams_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/moby/spdystream"
	"github.com/moby/spdystream/spdy"

	"github.com/deputymesh/deputy/proxy/kube/streams"
)

const v4 = "v4.channel.k8s.io"

func TestACommandPassesOverSPDY(t *testing.T) {
	var k tape
	var typed *spdystream.Stream
	opened := make(chan *spdystream.Stream, 5)
	r := newRig(t, spdyServer(t, v4, func(s *spdystream.Stream) { opened <- s }), func(c *streams.Config) { c.Recorder = k.recorder() })
	conn := r.spdy(v4)
	agent, target := map[string]*spdystream.Stream{}, map[string]*spdystream.Stream{}
	for _, kind := range []string{"error", "stdin", "stdout", "stderr", "resize"} {
		agent[kind] = open(t, conn, "streamType", kind, "secret-of-the-agent", "x")
		s := <-opened
		if len(s.Headers()) != 1 {
			t.Errorf("a stream arrived with %v", s.Headers())
		}
		target[s.Headers().Get("streamType")] = s
	}
	typed = target["stdin"]
	_, _ = io.WriteString(agent["resize"], `{"Width":100,"Height":30}`+"\n")
	_, _ = io.WriteString(agent["stdin"], "typed")
	got := make([]byte, 5)
	if _, err := io.ReadFull(typed, got); err != nil || string(got) != "typed" || k.said("i") != "typed" {
		t.Errorf("%q, %v; on record: %q", got, err, k.said("i"))
	}
	_ = agent["stdin"].Close()
	if rest, err := io.ReadAll(typed); err != nil || len(rest) > 0 {
		t.Errorf("after the input's end: %q, %v", rest, err)
	}
	_, _ = io.WriteString(target["stdout"], "shown")
	_ = target["stdout"].Close()
	_, _ = io.WriteString(target["stderr"], "wrong")
	_ = target["stderr"].Close()
	_, _ = io.WriteString(target["error"], failed7)
	_ = target["error"].Close()
	for kind, want := range map[string]string{"stdout": "shown", "stderr": "wrong", "error": failed7} {
		if text, err := io.ReadAll(agent[kind]); err != nil || string(text) != want {
			t.Errorf("%s: %q, %v", kind, text, err)
		}
	}
	for _, s := range agent {
		_ = s.Reset()
	}
	_ = conn.Close()
	if e := r.outcome(); e.err != nil || e.Exit == nil || e.Exit.Code != 7 || e.Sent != 5 || e.Received != 10 {
		t.Errorf("%+v, exit %+v: %v", e, e.Exit, e.err)
	}
	if k.said("o") != "shownwrong" && k.said("o") != "wrongshown" || k.said("r") != "100x30" {
		t.Errorf("recorded: %q, sizes %q", k.said("o"), k.said("r"))
	}
}

func TestNothingPassesUnrecordedOverSPDY(t *testing.T) {
	k := tape{broken: errors.New("the disk with the secret name is full")}
	opened := make(chan *spdystream.Stream, 2)
	r := newRig(t, spdyServer(t, v4, func(s *spdystream.Stream) { opened <- s }), func(c *streams.Config) { c.Recorder = k.recorder() })
	conn := r.spdy(v4)
	failed, in := open(t, conn, "streamType", "error"), open(t, conn, "streamType", "stdin")
	_, _ = io.WriteString(in, "typed")
	<-opened
	if text, err := io.ReadAll(<-opened); len(text) > 0 {
		t.Errorf("the API server got %q, %v", text, err)
	}
	if text, _ := io.ReadAll(failed); !strings.Contains(string(text), "can't be recorded") || strings.Contains(string(text), "secret") {
		t.Errorf("the agent hears %q", text)
	}
	if e := r.outcome(); !errors.Is(e.err, streams.ErrUnrecorded) {
		t.Errorf("%+v", e)
	}
}

// script writes frames to a connection as they are asked for.
func script(t *testing.T, w io.Writer, frames ...any) {
	t.Helper()
	f, err := spdy.NewFramer(w, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, frame := range frames {
		switch frame := frame.(type) {
		case spdy.Frame:
			_ = f.WriteFrame(frame)
		case []byte:
			_, _ = w.Write(frame)
		}
	}
}

func syn(id spdy.StreamId, headers ...string) *spdy.SynStreamFrame {
	f := &spdy.SynStreamFrame{StreamId: id, Headers: http.Header{}}
	for i := 0; i < len(headers); i += 2 {
		f.Headers.Add(headers[i], headers[i+1])
	}
	return f
}

func flagged(f *spdy.SynStreamFrame, flags spdy.ControlFlags) *spdy.SynStreamFrame {
	f.CFHeader.Flags = flags
	return f
}

// control is a frame with a length that is its own.
func control(kind uint16, length uint32, payload ...byte) []byte {
	b := binary.BigEndian.AppendUint16([]byte{0x80, 3}, kind)
	return append(binary.BigEndian.AppendUint32(b, length), payload...)
}

func many(n int) *spdy.SynStreamFrame {
	f := syn(1, "streamtype", "stdin")
	for i := range n {
		f.Headers.Add("x-"+strings.Repeat("a", i+1), "x")
	}
	return f
}

// hostileFrames are what an agent may not say once stdin is stream 1.
var hostileFrames = map[string][]any{
	"an even stream":                {syn(2, "streamtype", "stdin")},
	"a stream before the last":      {syn(3, "streamtype", "stdin"), syn(1, "streamtype", "stdout")},
	"a stream twice":                {syn(1, "streamtype", "stdin"), syn(1, "streamtype", "stdout")},
	"a kind twice":                  {syn(1, "streamtype", "stdin"), syn(3, "streamtype", "stdin")},
	"a kind that isn't":             {syn(1, "streamtype", "data", "port", "80", "requestid", "0")},
	"two kinds":                     {syn(1, "streamtype", "stdin", "streamtype", "resize")},
	"no kind":                       {syn(1)},
	"an associated stream":          {&spdy.SynStreamFrame{StreamId: 1, AssociatedToStreamId: 7, Headers: http.Header{"Streamtype": {"stdin"}}}},
	"a stream of one direction":     {flagged(syn(1, "streamtype", "stdin"), spdy.ControlFlagUnidirectional)},
	"a reply":                       {syn(1, "streamtype", "stdin"), &spdy.SynReplyFrame{StreamId: 1, Headers: http.Header{}}},
	"headers":                       {syn(1, "streamtype", "stdin"), &spdy.HeadersFrame{StreamId: 1, Headers: http.Header{}}},
	"output":                        {syn(1, "streamtype", "stdout"), &spdy.DataFrame{StreamId: 1, Data: []byte("x")}},
	"a status":                      {syn(1, "streamtype", "error"), &spdy.DataFrame{StreamId: 1, Data: []byte("x")}},
	"a size that isn't":             {syn(1, "streamtype", "resize"), &spdy.DataFrame{StreamId: 1, Data: []byte("x")}},
	"data after the end":            {flagged(syn(1, "streamtype", "stdin"), spdy.ControlFlagFin), &spdy.DataFrame{StreamId: 1, Data: []byte("x")}},
	"data on no stream's number":    {[]byte{0, 0, 0, 0, 0, 0, 0, 1, 'x'}},
	"data with flags":               {syn(1, "streamtype", "stdin"), []byte{0, 0, 0, 1, 2, 0, 0, 1, 'x'}},
	"more data than there may be":   {syn(1, "streamtype", "stdin"), []byte{0, 0, 0, 1, 0, 0xff, 0xff, 0xff}},
	"another version":               {[]byte{0x80, 2, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1}},
	"a type that isn't":             {control(77, 4, 0, 0, 0, 1)},
	"CREDENTIAL":                    {control(10, 4, 0, 0, 0, 1)},
	"a short SYN_STREAM":            {control(1, 9, 0, 0, 0, 1, 0, 0, 0, 0, 0)},
	"an empty header block":         {control(1, 10, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0)},
	"a long SYN_STREAM":             {control(1, 0xffffff)},
	"a long PING":                   {control(6, 8, 0, 0, 0, 1, 0, 0, 0, 2)},
	"a PING without number":         {control(6, 4, 0, 0, 0, 0)},
	"a RST without reason":          {control(3, 8, 0, 0, 0, 1, 0, 0, 0, 0)},
	"headers by the dozen":          {many(17)},
	"a header that unpacks to much": {syn(1, "streamtype", "stdin", "x", strings.Repeat("a", 5<<10))},
	"headers of HTTP":               {syn(1, "streamtype", "stdin", "Transfer-Encoding", "chunked")},
}

func TestWhatAnAgentMayNotSayEndsAStreamOfSPDY(t *testing.T) {
	for name, frames := range hostileFrames {
		t.Run(name, func(t *testing.T) {
			seen := make(chan []byte, 1)
			r := newRig(t, func(w http.ResponseWriter, q *http.Request) {
				conn, b := hijack(t, w, q, v4)
				text, _ := io.ReadAll(b)
				seen <- text
				_ = conn.Close()
			}, command)
			conn, _, _ := r.raw(upgradeTo(v4))
			script(t, conn, frames...)
			if e := r.outcome(); !errors.Is(e.err, streams.ErrAgent) || e.Sent != 0 {
				t.Errorf("%+v", e)
			}
			// Of the frames before it the API server may have seen some; of what is refused, nothing.
			if text := <-seen; bytes.Contains(text, []byte("x")) && bytes.HasSuffix(text, []byte("x")) {
				t.Errorf("the API server got %q", text)
			}
		})
	}
}

func TestWhatAnAPIServerMayNotSayEndsAStreamOfSPDY(t *testing.T) {
	for name, frames := range map[string][]any{
		"a stream":          {syn(2, "streamtype", "stdin")},
		"input":             {&spdy.DataFrame{StreamId: 1, Data: []byte("x")}},
		"a size":            {&spdy.DataFrame{StreamId: 3, Data: []byte("{}")}},
		"headers":           {&spdy.HeadersFrame{StreamId: 1, Headers: http.Header{}}},
		"a long status":     {&spdy.DataFrame{StreamId: 5, Data: make([]byte, 64<<10+1)}},
		"long data":         {[]byte{0, 0, 0, 1, 0, 0x10, 0, 1}},
		"data after an end": {&spdy.DataFrame{StreamId: 7, Flags: spdy.DataFlagFin}, &spdy.DataFrame{StreamId: 7, Data: []byte("x")}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, func(w http.ResponseWriter, q *http.Request) {
				conn, b := hijack(t, w, q, v4)
				f, _ := spdy.NewFramer(io.Discard, b)
				for range 4 {
					if _, err := f.ReadFrame(); err != nil {
						t.Errorf("the API server read %v", err)
					}
				}
				script(t, conn, frames...)
				_, _ = io.Copy(io.Discard, b)
				_ = conn.Close()
			}, command)
			conn, b, _ := r.raw(upgradeTo(v4))
			script(t, conn, syn(1, "streamtype", "stdin"), syn(3, "streamtype", "resize"), syn(5, "streamtype", "error"), syn(7, "streamtype", "stdout"))
			if text, _ := io.ReadAll(b); !bytes.Contains(text, []byte("broke the protocol")) {
				t.Errorf("the agent got %q", text)
			}
			if e := r.outcome(); !errors.Is(e.err, streams.ErrTarget) {
				t.Errorf("%+v", e)
			}
		})
	}
}

// What is late for a stream that was broken off is dropped, whoever says it; what nobody heeds is too; pings pass.
func TestLateFramesAreDropped(t *testing.T) {
	r := newRig(t, func(w http.ResponseWriter, q *http.Request) {
		conn, b := hijack(t, w, q, v4)
		f, _ := spdy.NewFramer(conn, b)
		if frame, err := f.ReadFrame(); err != nil || frame.(*spdy.SynStreamFrame).StreamId != 1 {
			t.Errorf("%v, %v", frame, err)
		}
		_ = f.WriteFrame(&spdy.RstStreamFrame{StreamId: 1, Status: spdy.Cancel})
		_ = f.WriteFrame(&spdy.DataFrame{StreamId: 1, Data: []byte("late")})
		_ = f.WriteFrame(&spdy.DataFrame{StreamId: 99, Data: []byte("nobody's")})
		_ = f.WriteFrame(&spdy.PingFrame{Id: 2})
		if frame, err := f.ReadFrame(); err != nil || frame.(*spdy.PingFrame).Id != 1 {
			t.Errorf("the API server got %v, %v", frame, err)
		}
		_ = conn.Close()
	}, command)
	conn, b, _ := r.raw(upgradeTo(v4))
	f, _ := spdy.NewFramer(conn, b)
	_ = f.WriteFrame(syn(1, "streamtype", "stdin"))
	if frame, err := f.ReadFrame(); err != nil || frame.(*spdy.RstStreamFrame).Status != spdy.Cancel {
		t.Errorf("%v, %v", frame, err)
	}
	if frame, err := f.ReadFrame(); err != nil || frame.(*spdy.PingFrame).Id != 2 {
		t.Errorf("%v, %v", frame, err)
	}
	_ = f.WriteFrame(&spdy.DataFrame{StreamId: 1, Data: []byte("late")})
	_ = f.WriteFrame(&spdy.SettingsFrame{FlagIdValues: []spdy.SettingsFlagIdValue{{Id: spdy.SettingsInitialWindowSize, Value: 1}}})
	_ = f.WriteFrame(&spdy.WindowUpdateFrame{StreamId: 1, DeltaWindowSize: 1})
	_ = f.WriteFrame(&spdy.PingFrame{Id: 1})
	if e := r.outcome(); e.err != nil || e.Sent+e.Received != 0 {
		t.Errorf("%+v", e)
	}
}

// What comes with the request for the upgrade isn't lost, and is judged as what comes later.
func TestWhatAnAgentSendsAheadPasses(t *testing.T) {
	opened := make(chan *spdystream.Stream, 1)
	r := newRig(t, spdyServer(t, v4, func(s *spdystream.Stream) { opened <- s }), command)
	var ahead bytes.Buffer
	script(t, &ahead, syn(1, "streamtype", "stdin"), &spdy.DataFrame{StreamId: 1, Data: []byte("ahead"), Flags: spdy.DataFlagFin})
	conn, _, _ := r.raw(upgradeTo(v4) + ahead.String())
	if text, err := io.ReadAll(<-opened); string(text) != "ahead" {
		t.Errorf("the API server got %q, %v", text, err)
	}
	_ = conn.Close()
	if e := r.outcome(); e.Sent != 5 || e.err != nil {
		t.Errorf("%+v: %v", e, e.err)
	}
}

// The agent is told why: kubectl takes an end that nobody explains for a success.
func TestASessionsEndEndsSPDY(t *testing.T) {
	gone := make(chan struct{})
	r := newRig(t, spdyServer(t, v4, func(s *spdystream.Stream) {
		go func() {
			_, _ = io.Copy(io.Discard, s)
			close(gone)
		}()
	}), command)
	conn := r.spdy(v4)
	failed := open(t, conn, "streamType", "error")
	r.cancel(errors.New("revoked by oscar"))
	if text, err := io.ReadAll(failed); !strings.Contains(string(text), "this session has ended: revoked by oscar") {
		t.Errorf("the agent hears %q, %v", text, err)
	}
	<-gone
	if e := r.outcome(); !errors.Is(e.err, streams.ErrEnded) {
		t.Errorf("%+v", e)
	}
}
