package supervise

import (
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// keepPagesOut refuses requests that a page of another origin made in a browser of the run's: the browser is the run's process, the page isn't.
// A page that had its own name resolve to this machine is known by that name, any other by what browsers say of themselves to loopback
// (Fetch Metadata, Sec-Fetch-Site).
func keepPagesOut(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !isThisMachine(r.Host) {
			http.Error(w, "deputy: the request names another host than the run's listener; use the address in its variable as it is", http.StatusMisdirectedRequest)
			return
		}
		for _, site := range r.Header.Values("Sec-Fetch-Site") {
			if site != "none" && site != "same-origin" {
				http.Error(w, "deputy: the request comes from a page of another origin", http.StatusForbidden)
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}

// ofItself takes a request's Origin away where it is the listener's own: nothing there is a page, so it is a client that says where it talks to. The
// proxy refuses any other.
func ofItself(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if all := r.Header.Values("Origin"); len(all) == 1 && r.Host != "" && strings.EqualFold(all[0], "http://"+r.Host) {
			r.Header.Del("Origin")
		}
		next.ServeHTTP(w, r)
	})
}

// isThisMachine takes the loopback addresses and localhost. HTTP/1.0 names no host, and no browser speaks it.
func isThisMachine(authority string) bool {
	host, _, err := net.SplitHostPort(authority)
	if err != nil {
		host = authority
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	if host == "" || strings.EqualFold(host, "localhost") {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.Unmap().IsLoopback()
}
