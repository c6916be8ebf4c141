package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"
)

func newTargetCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "target", Short: "Targets of a mesh: add one to the roles' files"}
	var policyDir string
	add := &cobra.Command{
		Use:   "add MESH FILE",
		Short: "Add a target, as the page of its kind shows it, to a mesh that init made",
		Long: "FILE holds the target's entry as docs/targets shows it for its kind: name, kind and what stands under the kind. Without\n" +
			"listen it gets the next loopback port. Files that the entry names are taken from beside FILE, and copied for the proxy alone.\n" +
			"The entry goes into the files of proxy, broker and agents; nothing changes unless all of them take it. Run it as who owns them\n" +
			"(root, where roles have uids of their own).",
		Example: "  deputy target add /etc/deputy billing.yaml --policy policy\n\n" +
			"with billing.yaml:\n\n  name: billing\n  kind: http\n  http:\n    url: https://billing.corp.example\n    accounts:\n" +
			"      - name: reader\n        bearer_file: billing.token\n        roles: [analyst]",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 2 {
				return fmt.Errorf("two arguments are expected: the folder of the mesh, and the file with the target's entry")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			a, err := planTargetAdd(args[0], args[1], policyDir)
			if err != nil {
				return fmt.Errorf("adding the target of %s: %w", args[1], err)
			}
			if err := a.write(); err != nil {
				return fmt.Errorf("adding the target %s: %w", a.entry.Name, err)
			}
			return a.explain(cmd.OutOrStdout())
		},
	}
	add.Flags().StringVar(&policyDir, "policy", "", "`folder` of the policy set, whose policy.yaml gets the target, too")
	cmd.AddCommand(add)
	return cmd
}

func (a *targetAdd) explain(w io.Writer) error {
	e := a.entry
	text := fmt.Sprintf("Added %s (%s), which the proxy serves at %s, to:\n", e.Name, e.Kind, e.Listen)
	for _, c := range a.changes {
		text += "  " + c.path + "\n"
	}
	if len(a.copies) > 0 {
		text += "Copied, for the proxy alone:\n"
		for _, c := range a.copies {
			text += "  " + c.path + "\n"
		}
	}
	text += "Nothing is allowed at it yet. Next:\n"
	if !a.inPolicy {
		text += fmt.Sprintf("  - in policy.yaml of your policy set, under targets:  %s: {kind: %s}\n", e.Name, e.Kind)
	}
	text += "  - write a rule for it, then: deputy policy check, sign and publish\n" +
		"  - restart the broker, the proxy and runs; they read their files when they start\n"
	_, err := io.WriteString(w, text)
	return err
}
