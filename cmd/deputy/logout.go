//go:build linux

package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/deputymesh/deputy/internal/login"
	sessionv1 "github.com/deputymesh/deputy/proto/deputy/session/v1"
)

func newLogoutCommand() *cobra.Command {
	var config string
	cmd := &cobra.Command{
		Use:   "logout",
		Short: "End the sign-in of this session",
		Long: "logout ends the session helper, and the login key with it. What agents were granted runs out by itself;\n" +
			"`deputy revoke` ends it at once.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadAgentConfig(config)
			if err != nil {
				return err
			}
			conn, rpc, err := login.Dial(cmd.Context(), cfg.RuntimeDir)
			if err != nil {
				return err
			}
			defer conn.Close()
			if _, err := rpc.End(cmd.Context(), &sessionv1.EndRequest{}); err != nil {
				return fmt.Errorf("ending the sign-in: %w", err)
			}
			fmt.Fprintln(cmd.OutOrStdout(), "Signed out.")
			return nil
		},
	}
	cmd.Flags().StringVar(&config, "config", "", agentConfigUsage)
	return cmd
}
