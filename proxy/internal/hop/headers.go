package hop

import (
	"net/http"
	"net/url"
	"strings"
)

// fromAgents are headers that say who asks or where from. Services believe them of a proxy, so none comes from an agent.
var fromAgents = []string{
	"Authorization", "Proxy-Authorization", "Forwarded", "Via", "True-Client-Ip", "Client-Ip", "Fastly-Client-Ip",
	"X-Real-Ip", "X-Client-Ip", "X-Cluster-Client-Ip", "X-User", "X-Username", "X-Email", "X-User-Id", "X-User-Name", "X-User-Email",
	"X-User-Groups", "X-User-Roles", "X-Userinfo", "X-Verified-User", "X-Access-Token", "X-Id-Token", "X-Credential-Identifier", "X-Anonymous-Consumer", "X-Spiffe-Id", "Sm-User",
	"X-Original-Url", "X-Original-Uri", "X-Original-Method", "X-Original-Host", "X-Rewrite-Url", "X-Host", "X-Forwarded", "X-Envoy-External-Address",
	"Client-Cert", "Client-Cert-Chain", "Fly-Client-Ip", "X-Originating-Ip", "X-Original-For", "Front-End-Https", "Early-Data", "Max-Forwards",
}

// fromAgentsBegin begins the names of more of them.
var fromAgentsBegin = []string{
	"Deputy-", "Impersonate-", "X-Forwarded-", "X-Auth-", "X-Authenticated-", "X-Remote-", "X-Ssl-", "X-Client-Cert", "X-Amzn-Oidc-", "X-Goog-", "X-Ms-Client-Principal",
	"X-Envoy-", "Proxy-", "Remote-", "X-Webauth-", "X-Authentik-", "X-Pomerium-", "Cf-", "X-Consumer-", "X-Oidc-", "Oidc-", "Iv-", "Tailscale-", "X-Arr-", "X-Vouch-", "X-Jwt-",
	"X-Appengine-", "Ssl-", "Wl-Proxy-", "X-Original-Forwarded-", "X-Azure-", "X-Tls-", "X-Client-Dn", "X-Client-S-Dn", "X-Client-Subject", "X-Client-Verif",
}

// ownToTarget are headers of an answer that are between proxy and target: how it wants to be signed in to, and where else it is.
var ownToTarget = []string{"Www-Authenticate", "Proxy-Authenticate", "Authentication-Info", "Proxy-Authentication-Info", "Alt-Svc", "Strict-Transport-Security"}

// Clean takes away what an agent may not say to a service. A name with an underscore, or with what becomes one, is another one to some servers.
func (h *Hop) Clean(header http.Header, a *Account) {
	for name := range header {
		if strings.ContainsFunc(name, unusual) {
			delete(header, name)
			continue
		}
		for _, begin := range fromAgentsBegin {
			if strings.HasPrefix(name, begin) {
				delete(header, name)
			}
		}
	}
	for _, name := range fromAgents {
		header.Del(name)
	}
	for name := range a.Headers {
		header.Del(name)
	}
	if !h.cfg.Cookies {
		header.Del("Cookie")
	}
}

func unusual(c rune) bool {
	return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-'
}

// CleanAnswer takes away what a service may not say to an agent.
func (h *Hop) CleanAnswer(header http.Header) {
	for name := range header {
		if strings.HasPrefix(name, "Deputy-") {
			delete(header, name)
		}
	}
	for _, name := range ownToTarget {
		header.Del(name)
	}
	if !h.cfg.Cookies {
		header.Del("Set-Cookie")
	}
	// The service's own origin is not where an agent reaches it.
	if to := header.Get("Location"); to != "" {
		if u, err := url.Parse(to); err == nil && strings.EqualFold(u.Host, h.cfg.Upstream.URL.Host) && u.Opaque == "" && u.User == nil && strings.HasPrefix(u.Path, "/") && !strings.HasPrefix(u.Path, "//") {
			u.Scheme, u.Host = "", ""
			header.Set("Location", u.String())
		}
	}
}
