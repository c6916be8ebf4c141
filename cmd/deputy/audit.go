package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/deputymesh/deputy/audit"
)

// Exit statuses of `deputy audit verify`, besides 1 for "couldn't look".
const (
	exitEvidence exitCode = 2 // the evidence doesn't hold
	exitTorn     exitCode = 3 // sound, but the log ends in an unfinished frame
)

func newAuditCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Read and verify the evidence",
		Long: "Read and verify audit logs. All of it works offline on the log's folder; verify needs only public keys.\n" +
			"The format is specified in docs/spec/audit-log.md.",
		Args: cobra.NoArgs,
	}
	cmd.AddCommand(newAuditTailCommand(), newAuditShowCommand(), newAuditRecordingCommand(), newAuditVerifyCommand(), newAuditKeysCommand())
	return cmd
}

func newAuditTailCommand() *cobra.Command {
	var follow, asJSON bool
	var last int
	cmd := &cobra.Command{
		Use:   "tail [flags] DIR",
		Short: "Print the last records of a log, and those that come",
		Long: "Prints one line per record: when, what, who (user > agent > agent; a ? marks an agent that only its parent vouches\n" +
			"for), and the ids of task and record that `deputy audit show` takes.",
		Example: "  deputy audit tail -f mesh/proxy/audit",
		Args:    oneArg("the folder of a log"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if last < 0 {
				return errors.New("-n: a number of records that isn't negative is expected")
			}
			return auditTail(cmd.Context(), cmd.OutOrStdout(), args[0], last, follow, asJSON)
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with records as they are written, until interrupted")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print each record as it stands in the log, one per line")
	cmd.Flags().IntVarP(&last, "lines", "n", 20, "how many of the last records")
	return cmd
}

func auditTail(ctx context.Context, out io.Writer, dir string, last int, follow, asJSON bool) error {
	r, err := openAuditLog(dir)
	if err != nil {
		return err
	}
	defer r.Close()
	ring := make([]*audit.Record, 0, last)
	for rec, err := range r.All() {
		if err != nil {
			return fmt.Errorf("reading the log in %s: %w", dir, err)
		}
		if last == 0 {
			continue
		}
		if len(ring) == last {
			ring = append(ring[:0], ring[1:]...)
		}
		ring = append(ring, rec)
	}
	for _, rec := range ring {
		if err := printRecord(out, rec, asJSON); err != nil {
			return err
		}
	}
	if err := damaged(dir, r); err != nil || !follow {
		return err
	}
	for rec, err := range r.Follow(ctx, 100*time.Millisecond) {
		if err != nil {
			return fmt.Errorf("reading the log in %s: %w", dir, err)
		}
		if err := printRecord(out, rec, asJSON); err != nil {
			return err
		}
	}
	return nil
}

func printRecord(out io.Writer, r *audit.Record, asJSON bool) error {
	line := []byte(r.Line())
	if asJSON {
		var err error
		if line, err = r.Expanded(); err != nil {
			return err
		}
	}
	_, err := out.Write(append(line[:len(line):len(line)], '\n'))
	return err
}

func newAuditShowCommand() *cobra.Command {
	var logs []string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show [flags] TASK|RECORD",
		Short: "Draw who acted for whom in a task, what each hop narrowed, and what came of it",
		Long: "Draws one task: the user, every agent below, what each was allowed, and each command with its decision and outcome.\n" +
			"Give the task's id (txn), or the id of a record, such as the one in an error message. With several logs (the\n" +
			"issuer's, the broker's, the proxies') the picture is whole. It shows what the logs say; `deputy audit verify` says\n" +
			"whether they can be believed.",
		Example: "  deputy audit show --log mesh/issuer/audit --log mesh/broker/audit --log mesh/proxy/audit 2e5277d52bc0f7985a81248648830a26",
		Args:    oneArg("the id of a task or of a record"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return auditShow(cmd.OutOrStdout(), logs, args[0], asJSON)
		},
	}
	cmd.Flags().StringArrayVar(&logs, "log", nil, "folder of a log (repeat it)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the tree as JSON")
	requireFlags(cmd, "log")
	return cmd
}

func auditShow(out io.Writer, dirs []string, what string, asJSON bool) error {
	if id, err := audit.ParseRecordID(what); err == nil {
		logs, done, err := openAuditLogs(dirs)
		if err != nil {
			return err
		}
		rec, err := audit.FindTxn(id, logs...)
		if err = errors.Join(err, done()); err != nil {
			return err
		}
		if rec.Txn == "" { // it belongs to no task
			return printRecord(out, rec, asJSON)
		}
		what = rec.Txn
	}
	logs, done, err := openAuditLogs(dirs)
	if err != nil {
		return err
	}
	tree, err := audit.BuildTree(what, logs...)
	damage := done()
	if err != nil {
		return errors.Join(err, damage)
	}
	if asJSON {
		err = writeJSON(out, tree)
	} else {
		err = tree.WriteText(out)
	}
	return errors.Join(err, damage)
}

// damaged says that a log goes on behind what could be read.
func damaged(dir string, r *audit.Reader) error {
	if err := r.Damaged(); err != nil {
		return fmt.Errorf("the log in %s goes on behind what can be read: %w; don't rely on what is shown, and run: deputy audit verify", dir, err)
	}
	return nil
}

func newAuditVerifyCommand() *cobra.Command {
	o := auditVerifyOptions{}
	cmd := &cobra.Command{
		Use:   "verify [flags] --keys FILE DIR...",
		Short: "Prove offline, with public keys only, that logs are whole and unchanged",
		Long: "Checks every frame, record, checkpoint and signature, that each log only grew, that nothing took effect without a\n" +
			"decision, and that every credential behind a record was good when it was used. A log that was cut back to an\n" +
			"earlier state of itself looks whole: keep its checkpoint (--save) and give it to the next verification (--seen).\n\n" +
			"Exit status: 0 all holds; 1 couldn't look; 2 the evidence doesn't hold; 3 all holds, but a log ends in an\n" +
			"unfinished frame, which a crash leaves behind and nobody relied on.",
		Example: "  deputy audit verify --keys mesh/public/audit-keys.json mesh/issuer/audit mesh/broker/audit mesh/proxy/audit\n" +
			"  deputy audit verify --keys audit-keys.json --record 01927f3c-8a6e-7c3b-9d52-1f0e6b7a8c9d mesh/proxy/audit",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return errors.New("the folder of at least one log is expected")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			o.dirs = args
			return auditVerify(cmd.OutOrStdout(), o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.keys, "keys", "", "the operator's list of public keys (`file` audit-keys.json; required)")
	f.StringArrayVar(&o.seen, "seen", nil, "file with a checkpoint that a log must contain (repeat it)")
	f.StringVar(&o.record, "record", "", "prove this record: that it is in its frame, and the frame in the log")
	f.StringVar(&o.save, "save", "", "folder to keep each log's last checkpoint in, when all holds")
	f.BoolVar(&o.pruned, "pruned", false, "the first segments were archived and removed")
	f.BoolVar(&o.asJSON, "json", false, "print the reports as JSON")
	requireFlags(cmd, "keys")
	return cmd
}

func openAuditLog(dir string) (*audit.Reader, error) {
	if err := checkLogFolder(dir); err != nil {
		return nil, err
	}
	return audit.NewReader(os.DirFS(dir)), nil
}

func checkLogFolder(dir string) error {
	if _, err := os.ReadDir(dir); err != nil {
		return fmt.Errorf("opening the log: %w", err)
	}
	names, err := filepath.Glob(filepath.Join(dir, "*.segment"))
	if err != nil || len(names) == 0 {
		return fmt.Errorf("opening the log in %s: no segments there; give the folder that a role's configuration names under audit", dir)
	}
	return nil
}

func openAuditLogs(dirs []string) (logs []iter.Seq2[*audit.Record, error], done func() error, err error) {
	var readers []*audit.Reader
	done = func() error {
		var errs []error
		for i, r := range readers {
			errs = append(errs, damaged(dirs[i], r), r.Close())
		}
		return errors.Join(errs...)
	}
	for _, dir := range dirs {
		r, err := openAuditLog(dir)
		if err != nil {
			return nil, nil, errors.Join(err, done())
		}
		readers, logs = append(readers, r), append(logs, r.All())
	}
	return logs, done, nil
}

func writeJSON(out io.Writer, v any) error {
	e := json.NewEncoder(out)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// readSmall reads a file that should be small.
func readSmall(path string, limit int64) ([]byte, error) {
	f, err := os.Open(filepath.Clean(path))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s: larger than %d bytes", path, limit)
	}
	return b, nil
}
