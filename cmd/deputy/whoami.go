//go:build linux

package main

import (
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/deputymesh/deputy/client"
	sessionv1 "github.com/deputymesh/deputy/proto/deputy/session/v1"
)

func newWhoamiCommand() *cobra.Command {
	var config string
	cmd := &cobra.Command{
		Use:   "whoami",
		Short: "Say who is signed in, or which agent this is",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			out := cmd.OutOrStdout()
			if os.Getenv(client.SocketVariable) != "" {
				return whichAgent(cmd)
			}
			cfg, err := loadAgentConfig(config)
			if err != nil {
				return err
			}
			conn, rpc, err := dialSession(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			defer conn.Close()
			d, err := rpc.Describe(cmd.Context(), &sessionv1.DescribeRequest{})
			if err != nil {
				return err
			}
			fmt.Fprintf(out, "user       %s\nsigned in  %s\nuntil      %s\nmesh       %s\n", describeUser(d),
				d.GetAuthTime().AsTime().Local().Format(time.DateTime), d.GetExpiresAt().AsTime().Local().Format(time.DateTime), d.GetMesh())
			return nil
		},
	}
	cmd.Flags().StringVar(&config, "config", "", agentConfigUsage)
	return cmd
}

func whichAgent(cmd *cobra.Command) error {
	a, err := client.FromEnvironment(cmd.Context())
	if err != nil {
		return err
	}
	defer a.Close()
	d, err := a.Describe(cmd.Context())
	if err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	fmt.Fprintf(out, "agent      %s\ngrade      %s\nuser       %s\npurpose    %s\ntask       %s\nleft       %d\nuntil      %s\n",
		d.ID, d.Grade, d.User, d.Purpose, d.Task, d.Left, d.GrantsExpire.Local().Format(time.DateTime))
	for _, t := range d.Targets {
		fmt.Fprintf(out, "target     %s (%s)\n", t.Name, t.Kind)
	}
	return nil
}
