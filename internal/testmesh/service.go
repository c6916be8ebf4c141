package testmesh

import (
	"fmt"
	"os"
	"strings"

	"github.com/deputymesh/deputy/internal/testweb"
)

// Names of the web services, where there are any.
const (
	ServiceTarget = "billing" // nginx
	RPCTarget     = "rpc"     // a gRPC server
	RawTarget     = "raw"     // the same nginx, by TCP alone
)

// Web puts web services behind the proxy, as ServiceTarget, RPCTarget and RawTarget, for analysts. It is an option of a policy set that speaks
// about them.
func Web(site *testweb.Site) Option { return func(s *settings) { s.web = site } }

// GraphQL puts a GraphQL server at http://host:port behind the proxy, as ServiceTarget, for analysts. Its endpoint is /graphql.
func GraphQL(url string) Option { return func(s *settings) { s.graphql = url } }

func (m *Mesh) addGraphQL(url string) {
	m.addTarget(ServiceTarget, "http", "service", fmt.Sprintf(`    http:
      url: %s
      graphql: [/graphql]
      accounts:
        - name: nobody
          roles: [analyst]
`, url), nil)
}

// addWeb writes the services into the configurations of broker, proxy and agents.
func (m *Mesh) addWeb(site *testweb.Site) {
	m.t.Helper()
	ca, err := os.ReadFile(site.CAFile)
	if err != nil {
		m.t.Fatal(err)
	}
	m.addTarget(ServiceTarget, "http", "service", fmt.Sprintf(`    http:
      url: %s
      ca_file: billing-ca.crt
      accounts:
        - name: reader
          bearer_file: billing.token
          roles: [analyst]
`, site.URL), map[string][]byte{"billing-ca.crt": ca, "billing.token": []byte(testweb.Token + "\n")})
	m.addTarget(RPCTarget, "http", "rpc", fmt.Sprintf(`    http:
      url: http://%s
      plain_http2: true
      accounts:
        - name: nobody
          roles: [analyst]
`, site.GRPC), nil)
	m.addTarget(RawTarget, "tcp", "raw", fmt.Sprintf(`    tcp:
      address: %s
`, strings.TrimPrefix(site.URL, "https://")), nil)
}
