package supervise

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

// kubeVariable names the run's kubeconfig, for kubectl and all that is built on its libraries.
const kubeVariable = "KUBECONFIG"

// kubeVariables lead clients to a cluster: an outer run's must not lead an inner agent there, and a user's own, or a pod's, must not lead past the run's.
var kubeVariables = []string{kubeVariable, "KUBERNETES_MASTER", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"}

// placeholderToken opens nothing: the run's listener takes it away and puts the credential in its place. Without any, kubectl asks a person for a password when it
// is refused.
const placeholderToken = "deputy"

// kubeconfig is a file of clients (k8s.io/client-go/tools/clientcmd/api/v1). JSON is YAML, too.
type kubeconfig struct {
	APIVersion string        `json:"apiVersion"`
	Kind       string        `json:"kind"`
	Current    string        `json:"current-context"`
	Clusters   []kubeCluster `json:"clusters"`
	Users      []kubeUser    `json:"users"`
	Contexts   []kubeContext `json:"contexts"`
}

type kubeCluster struct {
	Name    string `json:"name"`
	Cluster struct {
		Server string `json:"server"`
	} `json:"cluster"`
}

type kubeUser struct {
	Name string `json:"name"`
	User struct {
		Token string `json:"token"`
	} `json:"user"`
}

type kubeContext struct {
	Name    string `json:"name"`
	Context struct {
		Cluster string `json:"cluster"`
		User    string `json:"user"`
	} `json:"context"`
}

// openKube writes the kubeconfig of the run: a context per cluster, through the listeners that openHTTP opened. The first is the current one.
func (s *Supervisor) openKube() error {
	c := kubeconfig{APIVersion: "v1", Kind: "Config"}
	for _, l := range s.web {
		if l.target.Kind != "kube" {
			continue
		}
		name := l.target.Name
		cluster, user, context := kubeCluster{Name: name}, kubeUser{Name: name}, kubeContext{Name: name}
		cluster.Cluster.Server = "http://" + l.tcp.Addr().String()
		user.User.Token = placeholderToken
		context.Context.Cluster, context.Context.User = name, name
		c.Clusters, c.Users, c.Contexts = append(c.Clusters, cluster), append(c.Users, user), append(c.Contexts, context)
	}
	if len(c.Clusters) == 0 {
		return nil
	}
	c.Current = c.Contexts[0].Name
	text, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return fmt.Errorf("writing the kubeconfig: %w", err)
	}
	// In a folder of its own: kubectl config locks the file beside it, and writes it anew.
	dir := filepath.Join(s.cfg.Dir, "kube")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("writing the kubeconfig: %w", err)
	}
	path := filepath.Join(dir, "config")
	if err := os.WriteFile(path, append(text, '\n'), 0o600); err != nil {
		return fmt.Errorf("writing the kubeconfig: %w", err)
	}
	s.kubeFile = path
	return nil
}

// kubeEnvironment names the file.
func (s *Supervisor) kubeEnvironment() []string {
	if s.kubeFile == "" {
		return nil
	}
	return []string{kubeVariable + "=" + s.kubeFile}
}
