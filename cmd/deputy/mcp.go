package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/deputymesh/deputy/proxy/mcpd"
)

func newMCPCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "mcp", Short: "Work on what is known of tool servers"}
	cmd.AddCommand(&cobra.Command{
		Use:   "review FILE...",
		Short: "Write down tools as reviewed",
		Long: "review reads answers to tools/list that somebody has looked at, and prints the reviewed_file of a target of the kind mcp:\n" +
			"a digest of each tool's whole entry, and its name. The proxy then holds every tool that isn't among them as it was.",
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, files []string) error {
			for _, file := range files {
				list, err := os.ReadFile(file)
				if err != nil {
					return err
				}
				lines, err := mcpd.Review(list)
				if err != nil {
					return fmt.Errorf("%s: %w", file, err)
				}
				for _, line := range lines {
					if _, err := fmt.Fprintln(cmd.OutOrStdout(), line); err != nil {
						return err
					}
				}
			}
			return nil
		},
	})
	return cmd
}
