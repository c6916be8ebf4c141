package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/deputymesh/deputy/policy"
)

const (
	maxPolicyFile = 256 << 10
	maxQuestion   = 64 << 10
)

// policyManifest is policy.yaml, beside the .cedar files.
type policyManifest struct {
	Version uint64                  `yaml:"version"`
	Targets map[string]policyTarget `yaml:"targets"`
}

type policyTarget struct {
	Kind   string   `yaml:"kind"`
	Groups []string `yaml:"groups"`
}

func newPolicyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "Check, sign and explain policy sets",
		Long: "A policy set is a folder: policy.yaml (version and targets) and Cedar files.\n" +
			"Sign it, and publish it at the broker; proxies load it if the signature, the schema and the version are right.",
	}
	cmd.AddCommand(newPolicyCheckCommand(), newPolicySignCommand(), newPolicyExplainCommand(), newPolicyPublishCommand(), &cobra.Command{
		Use: "schema", Short: "Print the Cedar schema that policies are written against", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := io.WriteString(cmd.OutOrStdout(), policy.SchemaText())
			return err
		},
	})
	return cmd
}

func newPolicyCheckCommand() *cobra.Command {
	return &cobra.Command{
		Use: "check FOLDER", Short: "Say what is wrong with a policy set, by file, line and column", Args: oneArg("the folder with the policy set"),
		Long: "Checks policy.yaml and every .cedar file of FOLDER against the schema, the targets and the annotations.\n" +
			"Exit status: 0 no problems, 1 problems or couldn't look.",
		RunE: func(cmd *cobra.Command, args []string) error {
			source, err := readPolicyFolder(args[0])
			if err != nil {
				return err
			}
			if err := policy.Check(source); err != nil {
				return policyProblems(cmd, args[0], err)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: version %d, %s, %s: no problems\n", args[0], source.Version, counted(len(source.Files), "file"), counted(len(source.Targets), "target"))
			return nil
		},
	}
}

func newPolicySignCommand() *cobra.Command {
	var keyFile, out string
	cmd := &cobra.Command{
		Use: "sign --key FILE FOLDER", Short: "Check a policy set and sign it", Args: oneArg("the folder with the policy set"),
		Long: "Checks the set, signs it with the policy key that `deputy init` made, and writes the signed set (a JWS) to --out or\n" +
			"standard output. `deputy policy publish` takes it from there.",
		Example: "  deputy policy sign --key operator/policy.key --out policy.jwt policy/",
		RunE: func(cmd *cobra.Command, args []string) error {
			key, err := readPrivateKey(keyFile)
			if err != nil {
				return fmt.Errorf("reading the policy key: %w", err)
			}
			source, err := readPolicyFolder(args[0])
			if err != nil {
				return err
			}
			if err := policy.Check(source); err != nil {
				return policyProblems(cmd, args[0], err)
			}
			signed, err := policy.Sign(key, source)
			if err != nil {
				return err
			}
			if out == "" || out == "-" {
				_, err = fmt.Fprintln(cmd.OutOrStdout(), signed)
				return err
			}
			if err := os.WriteFile(out, []byte(signed+"\n"), 0o644); err != nil {
				return fmt.Errorf("writing the signed set: %w", err)
			}
			kid, err := policy.KeyID(&key.PublicKey)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "%s: version %d, signed by policy key %s\n", out, source.Version, kid)
			return nil
		},
	}
	cmd.Flags().StringVar(&keyFile, "key", "", "`file` with the policy key, ECDSA P-256, PKCS#8 PEM (required)")
	cmd.Flags().StringVarP(&out, "out", "o", "", "`file` to write (default: standard output)")
	requireFlags(cmd, "key")
	return cmd
}

func newPolicyExplainCommand() *cobra.Command {
	var request string
	cmd := &cobra.Command{
		Use: "explain [--request FILE] FOLDER", Short: "Decide one request and say which policies matched, and why", Args: oneArg("the folder with the policy set"),
		Long: "Reads a request as JSON, decides it by the set in FOLDER, and says for every policy which part of it matched.\n" +
			"Exit status: 0 allowed, 3 refused, 1 couldn't decide. Such a request reads:\n\n" + exampleQuestion,
		RunE: func(cmd *cobra.Command, args []string) error {
			in := cmd.InOrStdin()
			if request != "" && request != "-" {
				f, err := os.Open(request)
				if err != nil {
					return fmt.Errorf("reading the request: %w", err)
				}
				defer f.Close()
				in = f
			}
			raw, err := readLimited(in, maxQuestion)
			if err != nil {
				return fmt.Errorf("reading the request: %w", err)
			}
			q, err := policy.ParseQuestion(raw)
			if err != nil {
				return err
			}
			source, err := readPolicyFolder(args[0])
			if err != nil {
				return err
			}
			set, err := policy.Compile(source)
			if err != nil {
				return policyProblems(cmd, args[0], err)
			}
			e, err := set.Explain(q)
			if err != nil {
				return err
			}
			printExplanation(cmd.OutOrStdout(), e)
			if !e.Decision.Allow {
				return exitCode(3)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&request, "request", "", "`file` with the request (default: standard input)")
	return cmd
}

const exampleQuestion = `  {"facts": {"user": {"iss": "https://login.example.org", "sub": "alice", "grade": "attested"},
             "roles": ["analyst"], "purpose": "q3 refunds", "root_evidence": "verified",
             "agents": [{"id": "spiffe://example.org/agent/planner/0123456789abcdef0123456789abcdef", "grade": "attested"}],
             "trust_domain": "example.org", "signed_in": "2026-11-20T11:00:00Z",
             "started": "2026-11-20T11:00:00Z", "issued": "2026-11-20T12:00:00Z"},
   "action": "postgres:select", "now": "2026-11-20T12:00:00Z",
   "resource": {"kind": "table", "target": "orders-db", "database": "shop", "schema": "public", "name": "orders"},
   "command": {"database": "shop", "account": "shop_reader", "read_only": true, "kind": "select"}}`

func printExplanation(w io.Writer, e policy.Explanation) {
	d := e.Decision
	if d.Allow {
		fmt.Fprintf(w, "allowed by %s\n", strings.Join(d.Policies, ", "))
		for _, m := range d.Obligations.Masks {
			fmt.Fprintf(w, "  mask %s\n", m)
		}
		if d.Obligations.MaxRows > 0 {
			fmt.Fprintf(w, "  limit rows=%d\n", d.Obligations.MaxRows)
		}
		if d.Obligations.Record != policy.RecordDefault {
			fmt.Fprintf(w, "  record %s\n", d.Obligations.Record)
		}
	} else {
		fmt.Fprintf(w, "refused: %s\n", d.Reason)
	}
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	for _, r := range e.Rules {
		effect, verdict := "forbid", "doesn't match"
		if r.Permit {
			effect = "permit"
		}
		if r.Matched {
			verdict = "matches"
		}
		if r.Err != nil {
			verdict = "FAILS: " + r.Err.Error()
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s:%d\n", r.Policy, effect, verdict, r.File, r.Line)
		for _, p := range r.Parts {
			verdict = "no"
			if p.Matched {
				verdict = "yes"
			}
			if p.Err != nil {
				verdict = "FAILS: " + p.Err.Error()
			}
			fmt.Fprintf(t, "  %s\t\t%s\t\n", p.Part, verdict)
		}
	}
	t.Flush()
}

// readPolicyFolder reads policy.yaml and every .cedar file of a folder.
func readPolicyFolder(dir string) (policy.Source, error) {
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		return policy.Source{}, fmt.Errorf("%s: a folder with policy.yaml and .cedar files is expected, and there is none", dir)
	}
	m, err := loadConfig(filepath.Join(dir, "policy.yaml"), func(m *policyManifest) error {
		if m.Version == 0 {
			return fieldError("$.version", "the version must be 1 or more, and rise with every signed change")
		}
		return nil
	})
	if err != nil {
		return policy.Source{}, err
	}
	s := policy.Source{
		Version: m.Version, Schema: policy.SchemaID, IssuedAt: time.Now().Unix(),
		Files: map[string]string{}, Targets: map[string]policy.Target{},
	}
	for name, t := range m.Targets {
		s.Targets[name] = policy.Target{Kind: t.Kind, Groups: t.Groups}
	}
	paths, err := filepath.Glob(filepath.Join(dir, "*.cedar"))
	if err != nil {
		return policy.Source{}, fmt.Errorf("reading the policies: %w", err)
	}
	for _, p := range paths {
		f, err := os.Open(p)
		if err != nil {
			return policy.Source{}, fmt.Errorf("reading the policies: %w", err)
		}
		text, err := readLimited(f, maxPolicyFile)
		f.Close()
		if err != nil {
			return policy.Source{}, fmt.Errorf("reading %s: %w", p, err)
		}
		s.Files[filepath.Base(p)] = string(text)
	}
	return s, nil
}

// policyProblems prints every problem of a set, with the folder in front of the file, and ends.
func policyProblems(cmd *cobra.Command, dir string, err error) error {
	problems := []error{err}
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		problems = j.Unwrap()
	}
	for _, p := range problems {
		var at *policy.Problem
		if errors.As(p, &at) && at.File != "" {
			fmt.Fprintf(cmd.ErrOrStderr(), "%s%c%v\n", filepath.Clean(dir), filepath.Separator, p)
			continue
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "%s: %v\n", dir, p)
	}
	return exitCode(1)
}

// readLimited reads at most limit bytes; more is an error.
func readLimited(r io.Reader, limit int64) ([]byte, error) {
	raw, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(raw)) > limit {
		return nil, fmt.Errorf("more than %d bytes", limit)
	}
	return raw, nil
}
