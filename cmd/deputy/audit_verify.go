package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/deputymesh/deputy/audit"
)

type auditVerifyOptions struct {
	dirs   []string
	keys   string
	seen   []string
	record string
	save   string
	pruned bool
	asJSON bool
}

// auditVerdict is one log's report as --json prints it.
type auditVerdict struct {
	Dir string `json:"dir"`
	*audit.Report
}

func auditVerify(out io.Writer, o auditVerifyOptions) error {
	raw, err := readSmall(o.keys, 4<<20)
	if err != nil {
		return fmt.Errorf("reading the list of keys: %w", err)
	}
	keys, err := audit.ParseKeys(raw)
	if err != nil {
		return fmt.Errorf("%s: %w", o.keys, err)
	}
	seen, err := readSeen(o.seen)
	if err != nil {
		return err
	}
	opts := audit.VerifyOptions{Pruned: o.pruned}
	if o.record != "" {
		if opts.Record, err = audit.ParseRecordID(o.record); err != nil {
			return err
		}
	}

	var verdicts []auditVerdict
	used := make(map[string]bool)
	proved := false
	for _, dir := range o.dirs {
		if err := checkLogFolder(dir); err != nil {
			return err
		}
		report, err := verifyLog(dir, keys, opts, seen, used)
		if opts.Record != "" && errors.Is(err, audit.ErrNotFound) && len(o.dirs) > 1 {
			// The record is in one of the logs; the others are verified without it.
			without := opts
			without.Record = ""
			report, err = verifyLog(dir, keys, without, seen, used)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", dir, err)
		}
		proved = proved || report.Inclusion != nil
		verdicts = append(verdicts, auditVerdict{dir, report})
	}
	if opts.Record != "" && !proved {
		return fmt.Errorf("record %s isn't in any of these logs", opts.Record)
	}
	for origin := range seen {
		if !used[origin] {
			return fmt.Errorf("a checkpoint of the log %q was given with --seen, but that log wasn't", origin)
		}
	}

	if o.asJSON {
		if err := writeJSON(out, verdicts); err != nil {
			return err
		}
	} else {
		for _, v := range verdicts {
			if err := printReport(out, v); err != nil {
				return err
			}
		}
	}
	status := error(nil)
	for _, v := range verdicts {
		if len(v.Problems) > 0 {
			return exitEvidence
		}
		if v.Torn != nil {
			status = exitTorn
		}
	}
	if o.save != "" {
		if err := saveCheckpoints(o.save, verdicts); err != nil {
			return err
		}
	}
	return status
}

// verifyLog verifies one log. A frame that is just being written looks unfinished, and a segment that was begun meanwhile
// doesn't fit; so a log that doesn't hold is looked at again. One that was tampered with stays so.
func verifyLog(dir string, keys *audit.Keys, opts audit.VerifyOptions, seen map[string][][]byte, used map[string]bool) (*audit.Report, error) {
	fsys := os.DirFS(dir)
	if origin, err := audit.Origin(fsys); err == nil {
		opts.Seen = seen[origin]
		used[origin] = true
	}
	for try := 0; ; try++ {
		report, err := audit.Verify(fsys, keys, opts)
		if err != nil || report.Torn == nil && report.Err() == nil || try == 2 {
			return report, err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// readSeen reads checkpoints by the origin that they name.
func readSeen(paths []string) (map[string][][]byte, error) {
	seen := make(map[string][][]byte)
	for _, path := range paths {
		msg, err := readSmall(path, 16<<10)
		if err != nil {
			return nil, fmt.Errorf("reading a checkpoint: %w", err)
		}
		cp, err := audit.ParseCheckpoint(msg)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		seen[cp.Origin] = append(seen[cp.Origin], msg)
	}
	return seen, nil
}

func saveCheckpoints(dir string, verdicts []auditVerdict) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("keeping checkpoints: %w", err)
	}
	for _, v := range verdicts {
		name := strings.NewReplacer("/", "_", ":", "_", "\\", "_").Replace(v.Origin) + ".checkpoint"
		if err := os.WriteFile(filepath.Join(dir, name), []byte(v.Checkpoint), 0o644); err != nil {
			return fmt.Errorf("keeping checkpoints: %w", err)
		}
	}
	return nil
}

func printReport(out io.Writer, v auditVerdict) error {
	var b strings.Builder
	r := v.Report
	verdict := "VERIFIED"
	switch {
	case len(r.Problems) > 0:
		verdict = "DOES NOT HOLD"
	case r.Torn != nil:
		verdict = "VERIFIED, ends in an unfinished frame"
	}
	fmt.Fprintf(&b, "%s: %s\n", v.Dir, verdict)
	if r.Origin != "" {
		fmt.Fprintf(&b, "  log          %q\n", r.Origin)
	}
	fmt.Fprintf(&b, "  records      %d in %s, %s, from number %d\n", r.Records, counted(int(r.Frames), "frame"), counted(r.Segments, "segment"), r.FirstSeq)
	if r.Records > 0 {
		fmt.Fprintf(&b, "  time         %s to %s\n", r.First.UTC().Format(time.RFC3339), r.Last.UTC().Format(time.RFC3339))
	}
	c := r.Credentials
	fmt.Fprintf(&b, "  credentials  %d verified again, every signature; %s with a chain", c.Verified, counted(c.Records, "record"))
	if c.Without > 0 {
		fmt.Fprintf(&b, ", %d of them without a kept credential", c.Without)
	}
	b.WriteByte('\n')
	if c.RecordedKeys > 0 {
		fmt.Fprintf(&b, "               %d of them by sign-in keys that only the log holds; to rest on the provider instead, put its\n               keys into the list: deputy audit keys fetch\n", c.RecordedKeys)
	}
	if r.Dev {
		b.WriteString("  dev          written by `deputy dev`: the grants prove nothing\n")
	}
	switch {
	case len(r.Problems) > 0: // what was read ends where the first problem is
	case r.Closed:
		b.WriteString("  end          closed cleanly")
	default:
		b.WriteString("  end          still open, or its writer crashed")
	}
	if len(r.Problems) == 0 {
		fmt.Fprintf(&b, "; %s after a crash, %s, %s without an outcome yet\n", counted(r.Recoveries, "start"), counted(r.Unknown, "unknown outcome"), counted(len(r.Open), "decision"))
	}
	if t := r.Torn; t != nil {
		fmt.Fprintf(&b, "  torn tail    %d bytes at offset %d of segment %d: never acknowledged to anybody\n", t.Bytes, t.Offset, t.Segment)
	}
	for _, s := range r.Silences {
		fmt.Fprintf(&b, "  silence      after record %d: %s to %s\n", s.AfterSeq, s.From.UTC().Format(time.RFC3339), s.To.UTC().Format(time.RFC3339))
	}
	if in := r.Inclusion; in != nil {
		fmt.Fprintf(&b, "  record       %s is number %d, in the frame of %d records at offset %d of segment %d;\n", in.Record.ID, in.Record.Seq, in.FrameCount, in.Offset, in.Segment)
		fmt.Fprintf(&b, "               %d hashes lead from it to the checkpoint below\n", len(in.Path))
	}
	for _, p := range r.Problems {
		fmt.Fprintf(&b, "  PROBLEM      %s\n", p)
	}
	if r.Checkpoint != "" {
		b.WriteString("  checkpoint\n")
		for line := range strings.Lines(r.Checkpoint) {
			b.WriteString("    " + line)
		}
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// MarshalJSON keeps the folder beside the report's own members.
func (v auditVerdict) MarshalJSON() ([]byte, error) {
	type report audit.Report
	return json.Marshal(struct {
		Dir string `json:"dir"`
		*report
	}{v.Dir, (*report)(v.Report)})
}
