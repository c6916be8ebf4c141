//go:build linux

package main

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/deputymesh/deputy/client"
)

// execCredential is what a client of Kubernetes takes from a plugin (client.authentication.k8s.io/v1).
type execCredential struct {
	APIVersion string               `json:"apiVersion"`
	Kind       string               `json:"kind"`
	Status     execCredentialStatus `json:"status"`
}

type execCredentialStatus struct {
	Expires     time.Time `json:"expirationTimestamp"`
	Token       string    `json:"token"`
	Certificate string    `json:"clientCertificateData"`
	Key         string    `json:"clientKeyData"`
}

const execCredentialVersion = "client.authentication.k8s.io/v1"

// execMargin is how long before its end a credential counts as over, so that no request leaves with one that ends on its way.
const execMargin = 20 * time.Second

func newKubeCredentialCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "kube-credential TARGET",
		Short: "Give this agent's identity and a credential to a client of Kubernetes: its exec plugin",
		Long: "kube-credential prints an ExecCredential (client.authentication.k8s.io/v1) for a Kubernetes cluster: this agent's certificate with its\n" +
			"key, and a credential as token. It is for clients that connect to the proxy themselves. They drop their connections when the certificate\n" +
			"changes; KUBECONFIG of a run leads through its listener, which doesn't.",
		Example: "  users:\n  - name: prod\n    user: {exec: {apiVersion: " + execCredentialVersion + ", command: deputy, args: [kube-credential, prod], interactiveMode: Never}}",
		Args:    oneArg("the target's name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if f, ok := cmd.OutOrStdout().(*os.File); ok && term.IsTerminal(int(f.Fd())) {
				return errors.New("a key is no text for a terminal: kubectl starts this command itself, by the exec entry of a kubeconfig")
			}
			if err := checkExecInfo(os.Getenv("KUBERNETES_EXEC_INFO")); err != nil {
				return err
			}
			a, err := client.FromEnvironment(cmd.Context())
			if err != nil {
				return err
			}
			defer a.Close()
			c, err := makeExecCredential(cmd, a, args[0])
			if err != nil {
				return err
			}
			return json.NewEncoder(cmd.OutOrStdout()).Encode(c)
		},
	}
}

// checkExecInfo reads which version a client wants, where it says so.
func checkExecInfo(text string) error {
	if text == "" {
		return nil
	}
	var info struct {
		APIVersion string `json:"apiVersion"`
	}
	if err := json.Unmarshal([]byte(text), &info); err != nil {
		return fmt.Errorf("reading KUBERNETES_EXEC_INFO: %w", err)
	}
	if info.APIVersion != execCredentialVersion {
		return fmt.Errorf("the client asks for %s; write apiVersion: %s into the exec entry of its kubeconfig", printableText(info.APIVersion), execCredentialVersion)
	}
	return nil
}

func makeExecCredential(cmd *cobra.Command, a *client.Agent, target string) (*execCredential, error) {
	d, err := a.Describe(cmd.Context())
	if err != nil {
		return nil, err
	}
	kind := ""
	for _, t := range d.Targets {
		if t.Name == target {
			kind = t.Kind
		}
	}
	if kind != "kube" {
		return nil, fmt.Errorf("%s is no Kubernetes cluster of this run; start it with --target %s, or see `deputy whoami`", printableText(target), printableText(target))
	}
	source, err := a.Source(cmd.Context())
	if err != nil {
		return nil, err
	}
	// The credential is bound to the certificate: where that changed between the two, both are asked for again.
	for range 3 {
		svid, err := source.GetX509SVID()
		if err != nil {
			return nil, err
		}
		credential, err := a.Credential(cmd.Context(), target)
		if err != nil {
			return nil, err
		}
		if now, err := source.GetX509SVID(); err != nil || !now.Certificates[0].Equal(svid.Certificates[0]) {
			continue
		}
		key, err := x509.MarshalPKCS8PrivateKey(svid.PrivateKey)
		if err != nil {
			return nil, fmt.Errorf("writing the key: %w", err)
		}
		var chain []byte
		for _, c := range svid.Certificates {
			chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
		}
		expires := credential.ExpiresAt
		if end := svid.Certificates[0].NotAfter; end.Before(expires) {
			expires = end
		}
		return &execCredential{APIVersion: execCredentialVersion, Kind: "ExecCredential", Status: execCredentialStatus{
			Expires: expires.Add(-execMargin).UTC().Truncate(time.Second), Token: credential.Reveal(), Certificate: string(chain),
			Key: string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})),
		}}, nil
	}
	return nil, errors.New("this agent's certificate changes faster than a credential can be made; try again")
}
