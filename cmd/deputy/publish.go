//go:build linux

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
)

func newPolicyPublishCommand() *cobra.Command {
	var config string
	cmd := &cobra.Command{
		Use:   "publish FILE",
		Short: "Publish a signed policy set at the broker",
		Long: "Sends a set that `deputy policy sign` wrote to the broker, which gives it to the proxies. Only operators with the role\n" +
			"admin may. Each proxy checks the signature itself, and never goes back to a lower version.\n\n" +
			"Exit status: 0 every proxy has it in force; 1 it wasn't published; 3 published, but a proxy hasn't confirmed it.",
		Example: "  deputy policy publish policy.jwt",
		Args:    oneArg("the file that deputy policy sign wrote"),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := os.Open(args[0])
			if err != nil {
				return fmt.Errorf("reading the signed policy set: %w", err)
			}
			defer f.Close()
			raw, err := io.ReadAll(io.LimitReader(f, maxSignedPolicy+1))
			if err != nil {
				return fmt.Errorf("reading the signed policy set: %w", err)
			}
			if raw = bytes.TrimSpace(raw); len(raw) == 0 || len(raw) > maxSignedPolicy {
				return errors.New("the file is empty or too large; `deputy policy sign` writes what is expected")
			}
			var a appliedAnswer
			if err := operatorCall(cmd.Context(), config, "policy", "/operator/v1/policy", "application/jose", raw, &a); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "Published policy %d (revision %d):\n", a.Version, a.Revision)
			return a.print(cmd.OutOrStdout(), false)
		},
	}
	cmd.Flags().StringVar(&config, "config", "", agentConfigUsage)
	return cmd
}
