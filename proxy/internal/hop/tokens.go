package hop

import (
	"context"
	"sync"

	"golang.org/x/oauth2"
)

// tokens keeps an account's token and fetches the next one when it runs out. However many requests want one, one fetch is under way, and all of them
// wait for its end or their own, whichever is first: an endpoint that hangs costs each of them one timeout, and a request that is over none.
type tokens struct {
	source oauth2.TokenSource

	mu      sync.Mutex    // guards what follows
	current *oauth2.Token // may have run out
	fetch   *fetch        // under way, or nil
}

// fetch is one question to the endpoint; token and err are set when done is closed.
type fetch struct {
	done  chan struct{}
	token *oauth2.Token
	err   error
}

func (t *tokens) get(ctx context.Context) (*oauth2.Token, error) {
	t.mu.Lock()
	if t.current.Valid() {
		defer t.mu.Unlock()
		return t.current, nil
	}
	f := t.fetch
	if f == nil {
		f = &fetch{done: make(chan struct{})}
		t.fetch = f
		// It belongs to no request, and ends with the timeout of the source's client at the latest; the end of the engine doesn't wait for it.
		go t.run(f)
	}
	t.mu.Unlock()
	select {
	case <-f.done:
		return f.token, f.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (t *tokens) run(f *fetch) {
	f.token, f.err = t.source.Token()
	t.mu.Lock()
	defer t.mu.Unlock()
	if f.err == nil {
		t.current = f.token
	}
	t.fetch = nil
	close(f.done)
}
