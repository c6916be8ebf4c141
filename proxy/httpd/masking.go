package httpd

import (
	"bufio"
	"context"
	"errors"
	"io"
	"mime"
	"net/http"
	"strings"

	"github.com/deputymesh/deputy/internal/mask"
	"github.com/deputymesh/deputy/policy"
	"github.com/deputymesh/deputy/proxy"
	"github.com/deputymesh/deputy/proxy/internal/hop"
)

// jsonOnly refuses obligations that can't be carried out on an answer in JSON.
func jsonOnly(o policy.Obligations) error {
	if o.MaxRows > 0 {
		return &proxy.Objection{Class: hop.ClassUnsupported, Reason: "the policy asks for a limit of rows, and an HTTP answer has none"}
	}
	for _, m := range o.Masks {
		if m.Path == "" {
			return &proxy.Objection{Class: hop.ClassUnsupported, Reason: "the policy masks a table's column, and an HTTP answer has members: $.name=masker is expected"}
		}
	}
	return nil
}

// unmasked forbids what would show a part of an answer, or something about it, that a mask can't be put on.
func unmasked(h http.Header) {
	for _, name := range []string{"Range", "If-Range", "If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since", "Te"} {
		h.Del(name)
	}
	h.Set("Accept-Encoding", "identity")
}

// errWithheld is an answer that no mask can be put on.
var errWithheld = errors.New("the answer is withheld: the policy masks members of JSON, and it isn't JSON that can be masked")

// maskAnswer puts the masks on an answer's body as it streams.
func (e *Engine) maskAnswer(r *http.Response, x *exchange) error {
	h := r.Header
	for _, name := range []string{"Etag", "Last-Modified", "Content-Md5", "Digest", "Content-Digest", "Repr-Digest", "Content-Length", "Accept-Ranges", "Trailer"} {
		h.Del(name)
	}
	if r.Request.Method == http.MethodHead || r.StatusCode == http.StatusNoContent || r.StatusCode == http.StatusNotModified || r.ContentLength == 0 {
		return nil
	}
	kind, params, err := mime.ParseMediaType(h.Get("Content-Type"))
	charset := strings.ToLower(params["charset"])
	isJSON := kind == "application/json" || strings.HasSuffix(kind, "+json") && !strings.HasSuffix(kind, "seq+json")
	encoding := h.Get("Content-Encoding")
	if err != nil || !isJSON || charset != "" && charset != "utf-8" || encoding != "" && encoding != "identity" || r.StatusCode == http.StatusPartialContent {
		return errWithheld
	}
	masks := mask.NewJSON(x.pass.Obligations().Masks, e.keyed)
	body := r.Body
	read, write := io.Pipe()
	r.Body, r.ContentLength = read, -1
	x.masking = make(chan struct{})
	go func() {
		defer close(x.masking)
		defer body.Close()
		to := bufio.NewWriter(write)
		err := masks.Copy(to, counted{body, &x.received})
		if err == nil {
			err = to.Flush()
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
