// Command deputy is every role of the identity mesh, one subcommand each.
//
// Only this package knows flags, environment variables, YAML and paths; the roles get opened
// dependencies and meet on the wire alone.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	os.Exit(run())
}

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	root := newRootCommand()
	started := false
	noteStart(root, &started)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	var code exitCode
	if errors.As(err, &code) {
		return int(code)
	}
	fmt.Fprintf(os.Stderr, "deputy: %v\n", err)
	if !started {
		fmt.Fprintf(os.Stderr, "See: %s --help\n", cmd.CommandPath())
	}
	if cmd.Name() == "run" {
		return runFailed
	}
	return 1
}

// noteStart makes every command say that it started: an error before that is one in how it was called.
func noteStart(cmd *cobra.Command, started *bool) {
	if run := cmd.RunE; run != nil {
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			*started = true
			return run(cmd, args)
		}
	}
	for _, c := range cmd.Commands() {
		noteStart(c, started)
	}
}

// runFailed is the status of a `deputy run` that did not get as far as its program.
const runFailed = 125

// exitCode is returned by a command that has said everything and only wants to end with a status.
type exitCode int

func (c exitCode) Error() string { return fmt.Sprintf("exit status %d", int(c)) }

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "deputy",
		Short:         "An identity mesh for nested agents",
		Long:          "Deputy makes every command carry the verifiable chain of who acts on whose behalf,\nchecks chain and command in front of the target, and keeps evidence nobody can quietly change.",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(
		newInitCommand(), newTargetCommand(), newDevCommand(), newIssuerCommand(), newBrokerCommand(), newProxyCommand(), newPolicyCommand(), newAuditCommand(),
		newLoginCommand(), newLogoutCommand(), newWhoamiCommand(), newRunCommand(), newConnectCommand(), newKubeCredentialCommand(), newMCPCommand(), newRevokeCommand(),
		newSampleSignInCommand(), newSampleCertificateCommand(), newSQLParseChildCommand(),
		newSessionHelperCommand(), newSupervisorCommand(),
	)
	return root
}

// requireFlags and hideFlags mark flags that the command defines; another name is a mistake in the program.
func requireFlags(cmd *cobra.Command, names ...string) {
	for _, name := range names {
		if err := cmd.MarkFlagRequired(name); err != nil {
			panic(err)
		}
	}
}

func hideFlags(cmd *cobra.Command, names ...string) {
	for _, name := range names {
		if err := cmd.Flags().MarkHidden(name); err != nil {
			panic(err)
		}
	}
}

// oneArg demands one argument, and says which.
func oneArg(what string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) != 1 {
			return fmt.Errorf("one argument is expected: %s", what)
		}
		return nil
	}
}
