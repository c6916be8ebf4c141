package streams_test

import (
	"bytes"
	"io"
	"reflect"
	"testing"

	"github.com/moby/spdystream/spdy"

	"github.com/deputymesh/deputy/proxy/kube/streams"
)

// FuzzFrames: whatever a peer sends, what is read of it is within limits, and means the same when it is written and read again.
func FuzzFrames(f *testing.F) {
	for _, frames := range hostileFrames {
		var b bytes.Buffer
		w, _ := spdy.NewFramer(&b, nil)
		for _, frame := range frames {
			switch frame := frame.(type) {
			case spdy.Frame:
				_ = w.WriteFrame(frame)
			case []byte:
				b.Write(frame)
			}
		}
		f.Add(b.Bytes())
	}
	f.Fuzz(func(t *testing.T, sent []byte) {
		var again bytes.Buffer
		w, _ := spdy.NewFramer(&again, nil)
		var seen []any
		err := streams.ReadFrames(bytes.NewReader(sent), func(frame spdy.Frame) {
			switch frame := frame.(type) {
			case *spdy.DataFrame:
				if len(frame.Data) > 1<<20 || frame.StreamId == 0 {
					t.Fatalf("%d bytes on stream %d", len(frame.Data), frame.StreamId)
				}
				seen = append(seen, [2]any{frame.StreamId, string(frame.Data)})
			case *spdy.SynStreamFrame:
				if len(frame.Headers) > 16 {
					t.Fatalf("%d headers", len(frame.Headers))
				}
				seen = append(seen, [2]any{frame.StreamId, frame.AssociatedToStreamId})
				frame.Headers = nil
			case *spdy.SynReplyFrame:
				seen = append(seen, frame.StreamId)
				frame.Headers = nil
			default:
				seen = append(seen, reflect.TypeOf(frame).String())
			}
			if err := w.WriteFrame(frame); err != nil {
				t.Fatalf("%T can't be written: %v", frame, err)
			}
		})
		if err == nil {
			t.Fatal("it has no end")
		}
		i := 0
		err = streams.ReadFrames(&again, func(frame spdy.Frame) {
			var got any
			switch frame := frame.(type) {
			case *spdy.DataFrame:
				got = [2]any{frame.StreamId, string(frame.Data)}
			case *spdy.SynStreamFrame:
				got = [2]any{frame.StreamId, frame.AssociatedToStreamId}
			case *spdy.SynReplyFrame:
				got = frame.StreamId
			default:
				got = reflect.TypeOf(frame).String()
			}
			if i >= len(seen) || !reflect.DeepEqual(got, seen[i]) {
				t.Fatalf("frame %d is %v", i, got)
			}
			i++
		})
		if err != io.EOF || i != len(seen) {
			t.Fatalf("read again: %d of %d frames, %v", i, len(seen), err)
		}
	})
}
