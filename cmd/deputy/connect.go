//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/deputymesh/deputy/client"
)

func newConnectCommand() *cobra.Command {
	var known string
	cmd := &cobra.Command{
		Use:   "connect TARGET",
		Short: "Connect standard input and output to a host or a TCP service: the ProxyCommand of a run's ssh configuration",
		Long: "connect opens a connection to the proxy of an SSH or TCP target under this agent's identity, presents a credential, and relays\n" +
			"standard input and output. `deputy run` writes it into the run's ssh configuration, which DEPUTY_SSH_CONFIG names.",
		Example: "  ssh -F \"$DEPUTY_SSH_CONFIG\" web uptime\n" +
			"  ssh -o 'ProxyCommand deputy connect --known-hosts /tmp/known.web web' -o UserKnownHostsFile=/tmp/known.web deputy@web uptime",
		Args: oneArg("the target's name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			a, err := client.FromEnvironment(cmd.Context())
			if err != nil {
				return err
			}
			defer a.Close()
			r, err := a.StreamRelay(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if known != "" {
				if r.Target.Kind != "ssh" {
					return fmt.Errorf("--known-hosts: %s is no host reached by SSH", args[0])
				}
				r.HostKey = func(line string) error { return writeKnownHost(known, args[0], line) }
			}
			r.Log = runLogger(cmd.ErrOrStderr(), false)
			err = r.Serve(cmd.Context(), os.Stdin, struct{ io.Writer }{os.Stdout})
			var refused *client.StreamRefused
			if errors.As(err, &refused) {
				return errors.New(refused.Text)
			}
			return err
		},
	}
	cmd.Flags().StringVar(&known, "known-hosts", "", "`file` to write the proxy's SSH host key to, as ssh's UserKnownHostsFile, before SSH begins")
	return cmd
}

// writeKnownHost puts the file in place at once: several connections may begin at the same time, and ssh may be reading.
func writeKnownHost(path, target, key string) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("writing the host key: %w", err)
	}
	_, err = fmt.Fprintf(f, "%s %s\n", target, key)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("writing the host key: %w", err), os.Remove(f.Name()))
	}
	return nil
}
