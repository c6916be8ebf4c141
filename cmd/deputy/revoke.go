//go:build linux

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/deputymesh/deputy/actor"
)

func newRevokeCommand() *cobra.Command {
	var config, user, session, task, agent, grant, reason string
	var keep time.Duration
	cmd := &cobra.Command{
		Use:   "revoke --user|--session|--task|--agent|--grant WHAT --reason TEXT",
		Short: "End a user's, task's or agent's credentials and live connections, now",
		Long: "revoke ends credentials, live connections and running queries of a user, a sign-in session, a task, an agent or a\n" +
			"grant, with everything below. An operator with the role admin may revoke anything, everybody else their own\n" +
			"sessions and tasks. Take the names from `deputy audit tail --json` or `deputy audit show --json`. A revocation\n" +
			"can't be taken back; it runs out by itself.\n\n" +
			"Exit status: 0 every proxy has it in force; 1 nothing was revoked; 3 revoked, but a proxy hasn't confirmed it.",
		Example: "  deputy revoke --task 2e5277d52bc0f7985a81248648830a26 --reason \"incident 7\"\n" +
			"  deputy revoke --user 'https://login.corp.example#alice' --for 24h --reason \"left the company\"",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if strings.TrimSpace(reason) == "" {
				return errors.New("--reason: a few words are expected; they stand in the record")
			}
			if cmd.Flags().Changed("for") && keep <= 0 {
				return fmt.Errorf("--for %s: a duration above zero is expected, such as 24h", keep)
			}
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
				if !hexID.MatchString(task) {
					return fmt.Errorf("--task %q: 32 hex digits are expected, as records show them under task", task)
				}
				body["kind"], body["value"] = "task", task
			case agent != "":
				if _, err := actor.AgentIDFromString(agent); err != nil {
					return fmt.Errorf("--agent %q: an agent's whole SPIFFE ID is expected, such as spiffe://corp.example/agent/planner/0123456789abcdef0123456789abcdef", agent)
				}
				body["kind"], body["value"] = "agent", agent
			default:
				return errors.New("the value of --user, --session, --task, --agent or --grant is empty")
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
			out := cmd.OutOrStdout()
			fmt.Fprintf(out, "Revoked %s until %s (revocation %s, revision %d):\n", body["kind"], a.Expires.Local().Format(time.DateTime), printableText(a.ID), a.Revision)
			err = a.print(out, true)
			if a.ended() == 0 && len(a.Pending) == 0 {
				fmt.Fprintln(out, "Nothing of it was live. If you expected otherwise, check the name: names that nobody has can be revoked too.")
			}
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&config, "config", "", agentConfigUsage)
	f.StringVar(&user, "user", "", "a user, as ISSUER#SUBJECT")
	f.StringVar(&session, "session", "", "a sign-in session, by its sid")
	f.StringVar(&task, "task", "", "a task tree, by its txn: 32 hex digits")
	f.StringVar(&agent, "agent", "", "an agent and everything below it, by its SPIFFE ID")
	f.StringVar(&grant, "grant", "", "a grant, as ISSUER#JTI")
	f.StringVar(&reason, "reason", "", "why: it stands in the record")
	f.DurationVar(&keep, "for", 0, "how long it holds (default: as long as what it ends could live)")
	requireFlags(cmd, "reason")
	cmd.MarkFlagsOneRequired("user", "session", "task", "agent", "grant")
	cmd.MarkFlagsMutuallyExclusive("user", "session", "task", "agent", "grant")
	return cmd
}

// hexID is how tasks are named. A session may have a name that its provider chose.
var hexID = regexp.MustCompile(`^[0-9a-f]{32}$`)

func splitIssuer(flag, s string) (string, string, error) {
	i := strings.LastIndexByte(s, '#')
	if i <= 0 || i == len(s)-1 {
		return "", "", fmt.Errorf("%s %q: ISSUER#NAME is expected, as records show it", flag, s)
	}
	return s[:i], s[i+1:], nil
}
