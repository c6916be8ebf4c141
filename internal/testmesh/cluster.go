package testmesh

import (
	"fmt"
	"os"

	"github.com/deputymesh/deputy/internal/testkube"
)

// ClusterTarget is the Kubernetes cluster, where there is one.
const ClusterTarget = "prod"

// ClusterGroup is the group in the cluster that analysts are in.
const ClusterGroup = "shop-team"

// Kube puts a Kubernetes cluster behind the proxy, as ClusterTarget, for analysts, who are in ClusterGroup there. It is an option of a policy set
// that speaks about it.
func Kube(c *testkube.Cluster) Option { return func(s *settings) { s.cluster = c } }

// addCluster writes the cluster into the configurations of broker, proxy and agents.
func (m *Mesh) addCluster(c *testkube.Cluster) {
	m.t.Helper()
	ca, err := os.ReadFile(c.CAFile)
	if err != nil {
		m.t.Fatal(err)
	}
	m.addTarget(ClusterTarget, "kube", "prod", fmt.Sprintf(`    kube:
      url: %s
      ca_file: prod-ca.crt
      accounts:
        - name: deputy
          token_file: prod.token
          roles: [analyst]
      groups:
        analyst: [%s]
`, c.URL, ClusterGroup), map[string][]byte{"prod-ca.crt": ca, "prod.token": []byte(testkube.ProxyToken + "\n")})
}
