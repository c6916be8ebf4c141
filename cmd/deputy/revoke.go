//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

func newRevokeCommand() *cobra.Command {
	var config, user, session, task, agent, grant, reason string
	var keep time.Duration
	cmd := &cobra.Command{
		Use:   "revoke --user|--session|--task|--agent|--grant WHAT --reason TEXT",
		Short: "End a user's, task's or agent's credentials and live connections, now",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			body := map[string]string{"reason": reason}
			switch {
			case user != "":
				iss, sub, err := splitIssuer("--user", user)
				if err != nil {
					return err
				}
				body["kind"], body["iss"], body["sub"] = "user", iss, sub
			case grant != "":
				iss, jti, err := splitIssuer("--grant", grant)
				if err != nil {
					return err
				}
				body["kind"], body["iss"], body["value"] = "grant", iss, jti
			case session != "":
				body["kind"], body["value"] = "session", session
			case task != "":
				body["kind"], body["value"] = "task", task
			default:
				body["kind"], body["value"] = "agent", agent
			}
			if keep > 0 {
				body["for"] = keep.String()
			}
			raw, err := json.Marshal(body)
			if err != nil {
				return err
			}
			var a appliedAnswer
			if err := operatorCall(cmd.Context(), config, "revoke", "/operator/v1/revocations", "application/json", raw, &a); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "Revoked %s (revocation %s, revision %d):\n", body["kind"], printableText(a.ID), a.Revision)
			return a.print(cmd.OutOrStdout(), true)
		},
	}
	f := cmd.Flags()
	f.StringVar(&config, "config", "", "agent.yaml")
	f.StringVar(&user, "user", "", "a user, as ISSUER#SUBJECT")
	f.StringVar(&session, "session", "", "a sign-in session, by its sid")
	f.StringVar(&task, "task", "", "a task tree, by its txn")
	f.StringVar(&agent, "agent", "", "an agent and everything below it, by its SPIFFE ID")
	f.StringVar(&grant, "grant", "", "a grant, as ISSUER#JTI")
	f.StringVar(&reason, "reason", "", "why: it stands in the record")
	f.DurationVar(&keep, "for", 0, "how long to keep the revocation (default: as long as what it ends could live)")
	requireFlags(cmd, "reason")
	cmd.MarkFlagsOneRequired("user", "session", "task", "agent", "grant")
	cmd.MarkFlagsMutuallyExclusive("user", "session", "task", "agent", "grant")
	return cmd
}

func splitIssuer(flag, s string) (string, string, error) {
	i := strings.LastIndexByte(s, '#')
	if i <= 0 || i == len(s)-1 {
		return "", "", fmt.Errorf("%s %q: ISSUER#NAME is expected, as records show it", flag, s)
	}
	return s[:i], s[i+1:], nil
}
