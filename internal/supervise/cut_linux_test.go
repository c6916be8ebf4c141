package supervise_test

import (
	"bufio"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/deputymesh/deputy/internal/supervise"
)

// In HTTP/1.0 the end of the connection is the end of the answer, so one that breaks off is a reset.
func TestAnAnswerInHTTP10ThatIsCutDoesNotLookWhole(t *testing.T) {
	stay := make(chan struct{})
	srv := supervise.LocalServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "half")
		_ = http.NewResponseController(w).Flush()
		switch r.URL.Path {
		case "/broken":
			panic(http.ErrAbortHandler)
		case "/ended":
			<-stay
		}
	}), slog.New(slog.DiscardHandler))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	defer func() {
		close(stay)
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	}()
	for _, path := range []string{"/whole", "/broken", "/ended"} {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := io.WriteString(c, "GET "+path+" HTTP/1.0\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		a, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(a.Body, make([]byte, 4)); err != nil {
			t.Fatal(err)
		}
		if path == "/ended" {
			_ = srv.Close()
		}
		if rest, err := io.ReadAll(a.Body); (err == nil) != (path == "/whole") {
			t.Errorf("%s: behind it %q, %v", path, rest, err)
		}
	}
}
