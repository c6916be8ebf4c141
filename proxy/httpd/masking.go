package httpd

import (
	"bufio"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"mime"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/deputymesh/deputy/internal/mask"
	"github.com/deputymesh/deputy/policy"
	"github.com/deputymesh/deputy/proxy"
	"github.com/deputymesh/deputy/proxy/internal/hop"
)

// answersOnly refuses obligations that can't be carried out on an HTTP answer.
func answersOnly(o policy.Obligations) error {
	if o.MaxRows > 0 {
		return &proxy.Objection{Class: hop.ClassUnsupported, Reason: "the policy asks for a limit of rows, and an HTTP answer has none"}
	}
	for _, m := range o.Masks {
		if !m.OfAnswer() {
			return &proxy.Objection{Class: hop.ClassUnsupported, Reason: "the policy masks a table's column, and an HTTP answer has none: $.name=masker or detect:kind=masker is expected"}
		}
	}
	return nil
}

// unmasked forbids what would show a part of an answer, or something about it, that a mask can't be put on.
func unmasked(h http.Header) {
	for _, name := range []string{"Range", "If-Range", "If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since", "A-Im", "Te"} {
		h.Del(name)
	}
	h.Set("Accept-Encoding", "identity")
}

// errWithheld is an answer that no mask can be put on.
var errWithheld = errors.New("the answer is withheld: the policy masks what is in it, and it is of a kind that can't be masked")

// copyMasked copies an answer with the masks put on.
type copyMasked func(m *mask.JSON, to *bufio.Writer, from io.Reader) error

// textKinds are texts whose type doesn't say so.
var textKinds = []string{"application/xml", "application/javascript", "application/ecmascript", "application/yaml", "application/x-yaml", "application/toml", "application/sql", "application/graphql"}

// lineKinds are JSON texts that follow each other.
var lineKinds = []string{"application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines", "application/jsonlines", "application/json-lines"}

// copierFor is how masks are put on a kind of content; nil if they can't be.
func copierFor(contentType string, byPath bool) copyMasked {
	kind, params, err := mime.ParseMediaType(contentType)
	if charset := strings.ToLower(params["charset"]); err != nil || charset != "" && charset != "utf-8" && charset != "us-ascii" {
		return nil
	}
	switch {
	case kind == "application/json" || strings.HasSuffix(kind, "+json") && !strings.HasSuffix(kind, "seq+json"):
		return (*mask.JSON).Copy
	case kind == "text/event-stream":
		return (*mask.JSON).Events
	case slices.Contains(lineKinds, kind):
		return (*mask.JSON).Lines
	case !byPath && (strings.HasPrefix(kind, "text/") || strings.HasSuffix(kind, "+xml") || slices.Contains(textKinds, kind)):
		return (*mask.JSON).Text
	}
	return nil
}

// maskAnswer puts the masks on an answer: on its header at once, on its body as it streams.
func (e *Engine) maskAnswer(r *http.Response, x *exchange) error {
	masks := mask.NewJSON(x.pass.Obligations().Masks, e.keyed)
	h := r.Header
	for _, name := range []string{"Etag", "Last-Modified", "Content-Md5", "Digest", "Content-Digest", "Repr-Digest", "Content-Length", "Accept-Ranges", "Trailer"} {
		h.Del(name)
	}
	for name, values := range h {
		for i := range values {
			if name != "Content-Type" && name != "Content-Encoding" {
				values[i] = masks.String(values[i])
			}
		}
	}
	x.masked = masks.Counts()
	if r.Request.Method == http.MethodHead || r.StatusCode == http.StatusNoContent || r.StatusCode == http.StatusNotModified || r.ContentLength == 0 {
		return nil
	}
	copyTo := copierFor(h.Get("Content-Type"), masks.ByPath())
	encoding := strings.ToLower(h.Get("Content-Encoding"))
	zipped := encoding == "gzip" || encoding == "x-gzip"
	partly := r.StatusCode == http.StatusPartialContent || r.StatusCode == http.StatusIMUsed
	if copyTo == nil || partly || len(h.Values("Content-Type")) > 1 || len(h.Values("Content-Encoding")) > 1 || !zipped && encoding != "" && encoding != "identity" {
		return errWithheld
	}
	h.Del("Content-Encoding")
	body := r.Body
	read, write := io.Pipe()
	r.Body, r.ContentLength = read, -1
	x.masking = make(chan struct{})
	go func() {
		defer close(x.masking)
		defer body.Close()
		err := masked(masks, copyTo, countedWriter{write, &x.bytes}, hop.Counted{ReadCloser: body, N: &x.received}, zipped)
		if err != nil && r.Request.Context().Err() == nil {
			e.cfg.Logger.ErrorContext(r.Request.Context(), "a masked answer was cut", "target", e.hop.Name(), "error", err)
		}
		if err == nil {
			x.masked = masks.Counts()
			// The end of the answer waits for the record of what was masked in it.
			status := "ok"
			if x.status >= 400 {
				status = "error"
			}
			err = e.complete(context.WithoutCancel(r.Request.Context()), x, status)
		}
		_ = write.CloseWithError(err) // nil is the end
	}()
	return nil
}

type countedWriter struct {
	io.Writer
	n *atomic.Int64
}

func (w countedWriter) Write(b []byte) (int, error) { return countFirst(w.Writer, b, w.n) }

// masked copies a body with the masks put on. A service that compresses though it was asked not to is read nevertheless.
func masked(m *mask.JSON, copyTo copyMasked, write io.Writer, from io.Reader, zipped bool) error {
	if zipped {
		z, err := gzip.NewReader(from)
		if err != nil {
			return err
		}
		from = z
	}
	to := bufio.NewWriter(write)
	if err := copyTo(m, to, from); err != nil {
		return err
	}
	return to.Flush()
}
