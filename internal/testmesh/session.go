package testmesh

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Purpose stands in the user grant of every agent that a Session starts.
const Purpose = "q3 refunds"

// Session is a user's sign-in. Sessions of one mesh don't see each other: each has a runtime folder of its own.
type Session struct {
	m       *Mesh
	t       testing.TB
	Config  string // its agent.yaml
	runtime string
	env     []string
}

// Login signs a user in, without a browser. The session ends with the test.
func (m *Mesh) Login(t testing.TB, user string) *Session {
	t.Helper()
	s := m.Session(t)
	r := s.Deputy(t, "login", "--script-user", user, "--script-password-file", m.passwordFile(user))
	if r.Code != 0 {
		t.Fatalf("signing %s in: %s\nidentity provider:\n%s", user, r, tail(m.SignIn.Log()))
	}
	t.Cleanup(func() { s.Deputy(t, "logout") })
	return s
}

// SessionDir is the folder of the session helpers' sockets.
func (s *Session) SessionDir() string { return filepath.Join(s.runtime, "session") }

// Session is a session in which nobody is signed in yet.
func (m *Mesh) Session(t testing.TB) *Session {
	t.Helper()
	n := m.sessions.Add(1)
	raw, err := os.ReadFile(m.Config("agent"))
	if err != nil {
		t.Fatal(err)
	}
	s := &Session{m: m, t: t, Config: filepath.Join(m.Dir, "agent", fmt.Sprintf("agent-%d.yaml", n))}
	s.runtime = filepath.Join(m.runtimeDirs(), fmt.Sprint(n))
	config := fmt.Sprintf("%sruntime_dir: %s\n", raw, s.runtime)
	if err := os.WriteFile(s.Config, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	s.env = []string{"DEPUTY_CONFIG=" + s.Config}
	return s
}

// Deputy runs a subcommand as the user, outside every agent.
func (s *Session) Deputy(t testing.TB, args ...string) Result {
	t.Helper()
	return Exec(t, s.Command(append([]string{Deputy(t)}, args...)...))
}

// Command is a program that runs in this session.
func (s *Session) Command(args ...string) Command { return Command{Args: args, Env: s.env} }

// Run runs a program in nested agents, outermost first.
func (s *Session) Run(t testing.TB, agents []string, argv ...string) Result {
	t.Helper()
	return Exec(t, s.Agents(t, agents, argv...))
}

// SQL runs statements with psql in nested agents, each in a message of its own, with plain output.
func (s *Session) SQL(t testing.TB, agents []string, statements ...string) Result {
	t.Helper()
	return s.Run(t, agents, s.m.Psql(statements...)...)
}

// Psql is the psql that runs statements, each in a message of its own, with plain output, to the end.
func (m *Mesh) Psql(statements ...string) []string {
	args := []string{m.PG.Bin("psql"), "-XAtq", "-v", "VERBOSITY=verbose"}
	for _, q := range statements {
		args = append(args, "-c", q)
	}
	return args
}

// Agents is the command that runs a program in nested agents, outermost first. A name may carry flags of
// `deputy run` after it.
func (s *Session) Agents(t testing.TB, agents []string, argv ...string) Command {
	t.Helper()
	var args []string
	for i, agent := range agents {
		words := strings.Fields(agent)
		args = append(args, Deputy(t), "run", "--as", words[0])
		if i == 0 {
			args = append(args, "--target", Target, "--purpose", Purpose)
		}
		args = append(append(args, words[1:]...), "--")
	}
	c := s.Command(append(args, argv...)...)
	c.Dir = s.m.Root // agents run under uids that may not be able to enter the test's own folder
	return c
}

// Nested are the agents that most tests run in.
var Nested = []string{"planner", "researcher"}

// Program is the path of a built program for agents: "team" or "agentprobe".
func Program(t testing.TB, name string) string {
	t.Helper()
	return filepath.Join(Build(t), name)
}
