package supervise

import (
	"slices"
	"strconv"
	"strings"

	"github.com/deputymesh/deputy/client"
)

const workloadVariable = "SPIFFE_ENDPOINT_SOCKET"

// postgresVariables are what libpq and its kin read to find and enter a server. An outer run's must not
// lead an inner agent to the outer one's listener, and a user's own must not lead past the run's.
var postgresVariables = []string{
	"PGHOST", "PGHOSTADDR", "PGPORT", "PGDATABASE", "PGUSER", "PGPASSWORD", "PGPASSFILE", "PGSERVICE", "PGSERVICEFILE", "PGSYSCONFDIR",
	"PGSSLMODE", "PGSSLNEGOTIATION", "PGREQUIRESSL", "PGSSLCERT", "PGSSLKEY", "PGSSLROOTCERT", "PGSSLCRL", "PGSSLCRLDIR", "PGSSLSNI",
	"PGSSLMINPROTOCOLVERSION", "PGSSLMAXPROTOCOLVERSION", "PGREQUIREPEER", "PGREQUIREAUTH", "PGCHANNELBINDING", "PGGSSENCMODE", "PGKRBSRVNAME",
	"PGGSSLIB", "PGGSSDELEGATION", "PGTARGETSESSIONATTRS", "PGLOADBALANCEHOSTS",
}

// Environment is base without the variables of outer runs, and with this one's.
func (s *Supervisor) Environment(base []string) []string {
	drop := []string{client.SocketVariable, workloadVariable}
	inside := slices.ContainsFunc(base, func(e string) bool { return strings.HasPrefix(e, client.SocketVariable+"=") })
	if inside || len(s.listeners) > 0 {
		drop = append(drop, postgresVariables...)
	}
	if inside || s.sshConfig != "" {
		drop = append(drop, sshVariables...)
	}
	if inside || s.kubeFile != "" {
		drop = append(drop, kubeVariables...)
	}
	var env []string
	for _, e := range base {
		if name, _, ok := strings.Cut(e, "="); ok && !slices.Contains(drop, name) && !strings.HasPrefix(name, urlPrefix) && !strings.HasPrefix(name, addressPrefix) {
			env = append(env, e)
		}
	}
	socket := "unix://" + s.SocketPath()
	env = append(env, client.SocketVariable+"="+socket, workloadVariable+"="+socket)
	env = append(env, s.sshEnvironment()...)
	env = append(env, s.httpEnvironment()...)
	env = append(env, s.kubeEnvironment()...)
	env = append(env, s.tcpEnvironment()...)
	if len(s.listeners) == 0 {
		return env
	}
	first := s.listeners[0]
	user, database := first.startup()
	return append(env,
		"PGHOST="+first.target.SocketDir,
		"PGPORT="+strconv.Itoa(localPort),
		"PGUSER="+user,
		"PGDATABASE="+database,
		"PGSERVICEFILE="+s.serviceFile(),
		"PGPASSFILE="+s.passFile(),
	)
}
