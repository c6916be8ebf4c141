package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/deputymesh/deputy/audit"
)

func newAuditRecordingCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "recording [flags] RECORD",
		Short: "Write out what was typed and shown in a recorded shell",
		Long: "Writes the recording that belongs to a decision, in the format asciicast v2, as terminal players take it. It holds what\n" +
			"was typed and what was shown, as bytes from a host: don't print it to a terminal, play it. It says what the log says;\n" +
			"`deputy audit verify` says whether that can be believed.",
		Example: "  deputy audit recording --log mesh/proxy/audit 01927f3c-8a6e-7c3b-9d52-1f0e6b7a8c9d > shell.cast",
		Args:    oneArg("the id of the decision's record"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return auditRecording(cmd.OutOrStdout(), dir, args[0])
		},
	}
	cmd.Flags().StringVar(&dir, "log", "", "folder of the proxy's log")
	requireFlags(cmd, "log")
	return cmd
}

func auditRecording(out io.Writer, dir, what string) error {
	id, err := audit.ParseRecordID(what)
	if err != nil {
		return err
	}
	r, err := openAuditLog(dir)
	if err != nil {
		return err
	}
	defer r.Close()
	pieces := 0
	for rec, err := range r.All() {
		if err != nil {
			return fmt.Errorf("reading the log in %s: %w", dir, err)
		}
		e, ok := rec.Event.(*audit.Evidence)
		if !ok || rec.Decision != id || e.Kind != audit.KindRecording {
			continue
		}
		pieces++
		if _, err := out.Write(e.Data); err != nil {
			return err
		}
	}
	if err := damaged(dir, r); err != nil {
		return err
	}
	if pieces == 0 {
		return errors.New("nothing was recorded of that; shells are, where a policy says @record(\"full\"), under the record that allowed them")
	}
	return nil
}
