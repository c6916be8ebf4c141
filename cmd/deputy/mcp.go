package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"strings"

	"github.com/spf13/cobra"

	"github.com/deputymesh/deputy/internal/mcpstdio"
	"github.com/deputymesh/deputy/proxy/mcpd"
)

func newMCPCommand() *cobra.Command {
	var listen, tokenFile string
	var most int
	cmd := &cobra.Command{
		Use:   "mcp --listen ADDRESS --token-file FILE -- SERVER [ARGUMENT...]",
		Short: "Put tool servers and clients that speak MCP on standard input and output behind Deputy",
		Long: "mcp serves a local tool server, which speaks MCP on standard input and output, to the proxy: streamable HTTP at http://ADDRESS" + mcpstdio.Path + ", with a process\n" +
			"of its own for each session, and for each request of the protocol without sessions. It listens on this machine's loopback only, and answers nobody but who shows the token in FILE, which is the bearer_file\n" +
			"of the target's account at the proxy. What the server writes to standard error goes to standard error. A signal ends every server.",
		Example: "  deputy mcp --listen 127.0.0.1:7460 --token-file files.token -- mcp-server-filesystem /srv/shared\n" +
			"  deputy run --as planner --target files -- some-client --stdio-server 'deputy mcp connect files'",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 || cmd.ArgsLenAtDash() != 0 {
				return errors.New("a tool server to run is expected after --; or connect, or review")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return serveMCP(cmd, listen, mcpstdio.ServerConfig{Command: args, MaxSessions: most}, tokenFile)
		},
	}
	cmd.Flags().StringVar(&listen, "listen", "", "loopback `address` for the proxy, such as 127.0.0.1:7460")
	cmd.Flags().StringVar(&tokenFile, "token-file", "", "`file` with the token that the proxy shows, mode 0600")
	cmd.Flags().IntVar(&most, "max-sessions", mcpstdio.DefaultSessions, "how many sessions and requests without one, and so processes, there may be at once")
	cmd.AddCommand(newMCPConnectCommand(), newMCPReviewCommand())
	return cmd
}

func serveMCP(cmd *cobra.Command, listen string, cfg mcpstdio.ServerConfig, tokenFile string) error {
	if listen == "" || tokenFile == "" {
		return errors.New("--listen and --token-file are expected")
	}
	at, err := netip.ParseAddrPort(listen)
	if err != nil || !at.Addr().IsLoopback() {
		return fmt.Errorf("--listen: %q is no address and port of this machine's loopback, such as 127.0.0.1:7460", listen)
	}
	if cfg.Token, err = readSecret(tokenFile); err != nil {
		return fmt.Errorf("--token-file: %w", err)
	}
	if cfg.Command[0], err = exec.LookPath(cfg.Command[0]); err != nil {
		return fmt.Errorf("the tool server can't be run: %w", err)
	}
	cfg.Stderr, cfg.Log = os.Stderr, runLogger(cmd.ErrOrStderr(), true)
	s, err := mcpstdio.NewServer(cfg)
	if err != nil {
		return err
	}
	l, err := (&net.ListenConfig{}).Listen(cmd.Context(), "tcp", listen)
	if err != nil {
		return fmt.Errorf("--listen: %w", err)
	}
	return s.Serve(cmd.Context(), l)
}

func newMCPConnectCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "connect TARGET|URL",
		Short: "Connect a client that speaks MCP on standard input and output to a tool server",
		Long: "connect is the tool server's stand-in for a client that starts its servers itself: what the client writes to it goes through the run's listener and\n" +
			"the proxy to the target, and answers come back on standard output. It works inside `deputy run` only, and finds the listener in DEPUTY_URL_<TARGET>;\n" +
			"where a client hides the environment from its servers, give that variable's value. It ends when its input has ended and all is answered.",
		Example: "  deputy run --as planner --target tools -- mcp-inspector --cli deputy mcp connect tools --method tools/list",
		Args:    oneArg("the target's name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			endpoint, err := listenerOf(args[0])
			if err != nil {
				return err
			}
			// The run's listener, whatever proxy the environment names.
			transport := &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true}
			defer transport.CloseIdleConnections()
			c := &mcpstdio.Client{
				Endpoint: endpoint, Log: runLogger(cmd.ErrOrStderr(), false),
				HTTP: &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
			}
			err = c.Serve(cmd.Context(), os.Stdin, os.Stdout)
			if errors.Is(err, context.Canceled) {
				return nil
			}
			return err
		},
	}
}

// listenerOf finds the run's listener of a target, which clients that keep the environment to themselves may name by its URL.
func listenerOf(name string) (string, error) {
	if strings.HasPrefix(name, "http:") {
		u, err := url.Parse(name)
		if err != nil {
			return "", fmt.Errorf("%q is no URL", name)
		}
		if at, err := netip.ParseAddrPort(u.Host); err != nil || !at.Addr().IsLoopback() || u.Path != mcpstdio.Path || u.RawQuery != "" || u.User != nil {
			return "", fmt.Errorf("%q is no listener of a run, such as http://127.0.0.1:41001%s", name, mcpstdio.Path)
		}
		return name, nil
	}
	variable := "DEPUTY_URL_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
	endpoint := os.Getenv(variable)
	if endpoint == "" {
		return "", fmt.Errorf("%s isn't set: %s is no tool server of this run, or this is no `deputy run`, or whoever started this hides the environment: then give the variable's value instead of the name", variable, name)
	}
	return endpoint, nil
}

func newMCPReviewCommand() *cobra.Command {
	return &cobra.Command{
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
	}
}
