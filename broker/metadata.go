package broker

import (
	"encoding/json"
	"net/http"
	"net/url"
	"strings"

	"github.com/deputymesh/deputy/actor"
)

// metadata is RFC 8414, for authorization servers without an authorization endpoint.
type metadata struct {
	Issuer             string   `json:"issuer"`
	TokenEndpoint      string   `json:"token_endpoint"`
	RevocationEndpoint string   `json:"revocation_endpoint"`
	KeysURL            string   `json:"jwks_uri"`
	ResponseTypes      []string `json:"response_types_supported"`
	GrantTypes         []string `json:"grant_types_supported"`
	TokenAuthMethods   []string `json:"token_endpoint_auth_methods_supported"`
	RevokeAuthMethods  []string `json:"revocation_endpoint_auth_methods_supported"`
	BoundTokens        bool     `json:"tls_client_certificate_bound_access_tokens"`
	DetailTypes        []string `json:"authorization_details_types_supported"`
	Scopes             []string `json:"scopes_supported"`
}

// webHandler serves the web listener. The mesh may have a path: everything hangs below it, save the
// metadata, whose well-known part comes before it (RFC 8414 §3).
func (b *Broker) webHandler() http.Handler {
	base := b.cfg.Mesh
	path := ""
	if u, err := url.Parse(base); err == nil {
		path = strings.TrimSuffix(u.Path, "/")
	}
	base = strings.TrimSuffix(base, "/")
	m := metadata{
		Issuer: b.cfg.Mesh, TokenEndpoint: b.cfg.TokenURL + "/token", RevocationEndpoint: b.cfg.TokenURL + "/revoke", KeysURL: base + "/jwks",
		ResponseTypes: []string{}, GrantTypes: []string{"urn:ietf:params:oauth:grant-type:token-exchange"},
		TokenAuthMethods: []string{"spiffe_x509"}, RevokeAuthMethods: []string{"spiffe_x509"}, BoundTokens: true,
		DetailTypes: []string{actor.PostgresDetail{}.Type(), actor.SSHDetail{}.Type(), actor.HTTPDetail{}.Type(), actor.TCPDetail{}.Type(), actor.MCPDetail{}.Type(), actor.KubeDetail{}.Type()},
	}
	for _, v := range actor.PostgresVerbs() {
		m.Scopes = append(m.Scopes, "postgres:"+v)
	}
	for _, v := range actor.SSHVerbs() {
		m.Scopes = append(m.Scopes, "ssh:"+v)
	}
	for _, v := range actor.HTTPVerbs() {
		m.Scopes = append(m.Scopes, "http:"+v)
	}
	for _, v := range actor.TCPVerbs() {
		m.Scopes = append(m.Scopes, "tcp:"+v)
	}
	for _, v := range actor.MCPVerbs() {
		m.Scopes = append(m.Scopes, "mcp:"+v)
	}
	for _, v := range actor.KubeVerbs() {
		m.Scopes = append(m.Scopes, "kube:"+v)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/oauth-authorization-server"+path, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "max-age=60")
		_ = json.NewEncoder(w).Encode(m) // a client that is gone can't be told
	})
	mux.Handle("GET "+path+"/jwks", b.token.JWKS())
	mux.Handle(path+"/operator/v1/", http.StripPrefix(path, b.operator.Handler()))
	return mux
}
