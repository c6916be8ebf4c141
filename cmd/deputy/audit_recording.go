package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/deputymesh/deputy/audit"
)

func newAuditRecordingCommand() *cobra.Command {
	var dir string
	var follow bool
	cmd := &cobra.Command{
		Use:   "recording [flags] RECORD",
		Short: "Write out what was typed and shown in a recorded shell",
		Long: "Writes the recording that belongs to a decision, in the format asciicast v2, as terminal players take it. It holds what\n" +
			"was typed and what was shown, as bytes from a host: don't print it to a terminal, play it. It says what the log says;\n" +
			"`deputy audit verify` says whether that can be believed. With --follow it goes on while the shell runs, and ends with it.",
		Example: "  deputy audit recording --log mesh/proxy/audit 01927f3c-8a6e-7c3b-9d52-1f0e6b7a8c9d > shell.cast\n" +
			"  deputy audit recording --follow --log mesh/proxy/audit 01927f3c-8a6e-7c3b-9d52-1f0e6b7a8c9d | asciinema play -",
		Args: oneArg("the id of the decision's record"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return auditRecording(cmd.Context(), cmd.OutOrStdout(), dir, args[0], follow)
		},
	}
	cmd.Flags().BoolVar(&follow, "follow", false, "go on as the shell does, until it has ended")
	cmd.Flags().StringVar(&dir, "log", "", "folder of the proxy's log")
	requireFlags(cmd, "log")
	return cmd
}

// followEvery is how often a log is looked at for more of a recording.
const followEvery = 200 * time.Millisecond

func auditRecording(ctx context.Context, out io.Writer, dir, what string, follow bool) error {
	id, err := audit.ParseRecordID(what)
	if err != nil {
		return err
	}
	r, err := openAuditLog(dir)
	if err != nil {
		return err
	}
	defer r.Close()
	records := r.All()
	if follow {
		records = r.Follow(ctx, followEvery)
	}
	pieces, over := 0, false
	for rec, err := range records {
		if err != nil && follow && ctx.Err() != nil {
			return nil // whoever watched has seen enough
		}
		if err != nil {
			return fmt.Errorf("reading the log in %s: %w", dir, err)
		}
		if rec.Decision != id {
			continue
		}
		switch e := rec.Event.(type) {
		case *audit.Evidence:
			if e.Kind != audit.KindRecording {
				continue
			}
			pieces++
			if _, err := out.Write(e.Data); err != nil {
				return err
			}
		case *audit.Completed, *audit.OutcomeUnknown:
			over = follow
		}
		if over {
			break
		}
	}
	if follow && !over {
		return nil
	}
	if err := damaged(dir, r); err != nil && !follow {
		return err
	}
	if pieces == 0 {
		return errors.New("nothing was recorded of that; shells are, where a policy says @record(\"full\"), under the record that allowed them")
	}
	return nil
}
