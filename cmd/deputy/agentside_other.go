//go:build !linux

package main

import (
	"errors"
	"runtime"

	"github.com/spf13/cobra"
)

// onlyLinux stands for the agent side elsewhere: what tells one process from another there isn't known
// to this program, and guessing would be worse than refusing.
func onlyLinux(use, short string) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short + " (Linux only)", DisableFlagParsing: true,
		RunE: func(*cobra.Command, []string) error {
			return errors.New("this needs Linux (pidfds, subreapers, control groups); this is " + runtime.GOOS)
		},
	}
}

func newLoginCommand() *cobra.Command  { return onlyLinux("login", "Sign in") }
func newLogoutCommand() *cobra.Command { return onlyLinux("logout", "End the sign-in") }
func newWhoamiCommand() *cobra.Command { return onlyLinux("whoami", "Say who is signed in") }
func newRunCommand() *cobra.Command    { return onlyLinux("run", "Run a program as an agent") }
func newConnectCommand() *cobra.Command {
	return onlyLinux("connect", "Bring an SSH client to a target")
}
func newKubeCredentialCommand() *cobra.Command {
	return onlyLinux("kube-credential", "Give an identity to a client of Kubernetes")
}
func newRevokeCommand() *cobra.Command { return onlyLinux("revoke", "End credentials and connections") }
func newPolicyPublishCommand() *cobra.Command {
	return onlyLinux("publish", "Publish a signed policy set at the broker")
}
func newSessionHelperCommand() *cobra.Command { return onlyLinux("session-helper", "") }
func newSupervisorCommand() *cobra.Command    { return onlyLinux("supervise-agent", "") }
