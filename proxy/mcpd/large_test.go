package mcpd_test

import (
	"bufio"
	"io"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
)

// A message of many small values takes no more memory than one of a few.
func TestAMessageOfManyValuesIsRefusedBeforeItIsParsed(t *testing.T) {
	r := newRig(t, era(true, true))
	body := `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{"text":[` + strings.Repeat("0,", 2_000_000) + `0]}}}`
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	a, text := r.post(body)
	runtime.ReadMemStats(&after)
	if a.StatusCode != http.StatusBadRequest || !strings.Contains(text, "100000 values") {
		t.Errorf("%d %.300s", a.StatusCode, text)
	}
	if took := (after.TotalAlloc - before.TotalAlloc) >> 20; took > 64 {
		t.Errorf("it took %d MiB", took)
	}
	text = `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{"text":"` + strings.Repeat(`,:[{\"`, 400_000) + `"}}}`
	if a, got := r.post(text); a.StatusCode != http.StatusOK || !strings.Contains(got, "echo: ,:[{") {
		t.Errorf("a long text: %d %.300s", a.StatusCode, got)
	}
}

// An event that has gone through leaves its place, though its stream stays open.
func TestLargeEventsLeaveTheirPlaces(t *testing.T) {
	r := newRig(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		_, _ = io.Copy(io.Discard, q.Body)
		if q.Method != http.MethodGet {
			w.Header().Set("Mcp-Session-Id", "upstream")
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, `{"jsonrpc":"2.0","id":1,"result":{"protocolVersion":"2025-11-25","capabilities":{},"serverInfo":{"name":"a","version":"1"}}}`)
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		for _, method := range []string{"notifications/loot", "notifications/message"} {
			_, _ = io.WriteString(w, `data: {"jsonrpc":"2.0","method":"`+method+`","params":{"data":"`+strings.Repeat("x", 200<<10)+`"}}`+"\n\n")
		}
		_, _ = io.WriteString(w, ":\n\n")
		_ = http.NewResponseController(w).Flush()
		<-q.Context().Done()
	}))
	a, _ := r.post(begin)
	for i := range 40 {
		q, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+r.address+"/mcp", nil)
		if err != nil {
			t.Fatal(err)
		}
		q.Header.Set("Mcp-Session-Id", a.Header.Get("Mcp-Session-Id"))
		stream, err := r.client.Do(q)
		if err != nil {
			t.Fatal(err)
		}
		defer stream.Body.Close()
		read := bufio.NewReaderSize(stream.Body, 512<<10)
		for line := ""; line != ":\n"; { // the comment comes after the large event's place was left
			if line, err = read.ReadString('\n'); err != nil || strings.Contains(line, "error") {
				t.Fatalf("stream %d: %.300s %v", i, line, err)
			}
		}
	}
}

// Large messages wait for nobody: what has no place is told so, and what has ended gives its place back.
func TestLargeMessagesHaveFewPlaces(t *testing.T) {
	release := make(chan struct{})
	var arrived sync.WaitGroup
	r := newRig(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		body, _ := io.ReadAll(q.Body)
		if strings.Contains(string(body), "wait") {
			arrived.Done()
			<-release
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"jsonrpc":"2.0","id":1,"result":{"content":[]}}`)
	}))
	call := func(text string) string {
		return `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{"text":"` + text + strings.Repeat("x", 200<<10) + `"}}}`
	}
	var answered sync.WaitGroup
	arrived.Add(32)
	for range 32 {
		answered.Go(func() {
			if a, text := r.post(call("wait")); a.StatusCode != http.StatusOK {
				t.Errorf("%d %s", a.StatusCode, text)
			}
		})
	}
	arrived.Wait()
	if a, text := r.post(call("more")); a.StatusCode != http.StatusServiceUnavailable || !strings.Contains(text, "rec-refused") {
		t.Errorf("%d %s", a.StatusCode, text)
	}
	if a, text := r.post(strings.Replace(call(""), strings.Repeat("x", 200<<10), "x", 1)); a.StatusCode != http.StatusOK {
		t.Errorf("a small one: %d %s", a.StatusCode, text)
	}
	close(release)
	answered.Wait()
	if a, text := r.post(call("again")); a.StatusCode != http.StatusOK {
		t.Errorf("%d %s", a.StatusCode, text)
	}
}
