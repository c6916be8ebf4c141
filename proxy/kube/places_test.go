package kube_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/proxy/kube"
)

func TestNobodyTakesEveryPlaceOfLargeRequests(t *testing.T) {
	take, leave := kube.Places()
	user := func(i int) actor.SubjectID {
		return actor.SubjectID{Issuer: "https://idp.test", Subject: fmt.Sprint(i)}
	}
	for i := range 4 {
		for n := range 9 {
			if got := take(user(i)); got != (n < 8) {
				t.Errorf("place %d of user %d: %v", n, i, got)
			}
		}
	}
	if take(user(4)) {
		t.Error("there are more places than there may be")
	}
	leave(user(0))
	if !take(user(4)) {
		t.Error("a place that was left isn't given")
	}
}

func TestLargeRequestsWaitForNone(t *testing.T) {
	arrived, goOn := make(chan bool), make(chan bool)
	r := newRig(t, func(w http.ResponseWriter, q *http.Request) {
		if q.ContentLength > 1000 {
			arrived <- true
			<-goOn
		}
		_, _ = fmt.Fprint(w, "{}")
	})
	large := `{"data":{"a":"` + strings.Repeat("a", 300<<10) + `"}}`
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if a := r.ask("POST", "/api/v1/namespaces/shop/configmaps", large); a.StatusCode != 200 {
				t.Errorf("a large one: %d", a.StatusCode)
			}
		})
		<-arrived
	}
	if a := r.ask("POST", "/api/v1/namespaces/shop/configmaps", large); a.StatusCode != 429 || a.Header.Get("Retry-After") != "1" {
		t.Errorf("one more: %d", a.StatusCode)
	}
	if a := r.ask("POST", "/api/v1/namespaces/shop/configmaps", "{}"); a.StatusCode != 200 {
		t.Errorf("a small one: %d", a.StatusCode)
	}
	close(goOn)
	all.Wait()
}
