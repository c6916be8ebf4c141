package mcpd

import (
	"errors"
	"strings"

	"github.com/deputymesh/deputy/actor"
)

// defaultPorts are those of the schemes that the URL standard of browsers, and so of Node, calls special: it reads one place out of several spellings.
var defaultPorts = map[string]string{"file": "", "http": "80", "https": "443", "ws": "80", "wss": "443", "ftp": "21"}

// checkURI takes a URI in its canonical form ([actor.CheckMCPURI]) that no server takes for another one: file:/a, file:a and file://localhost/a are
// file:///a to many, and https://h:443 is https://h/.
func checkURI(uri string) error {
	if err := actor.CheckMCPURI(uri); err != nil {
		return err
	}
	scheme, rest, _ := strings.Cut(uri, ":")
	port, special := defaultPorts[scheme]
	if !special {
		return nil
	}
	rest, ok := strings.CutPrefix(rest, "//")
	host, _, slash := strings.Cut(rest, "/")
	_, given, _ := strings.Cut(host[strings.LastIndexByte(host, ']')+1:], ":")
	switch {
	case !ok || !slash:
		return errors.New("the URI has no // behind its scheme, or no path: some servers take it for another one")
	case strings.ContainsAny(host, "@%"), strings.HasSuffix(host, ":"), given != "" && (given == port || given[0] == '0'), scheme == "file" && host == "localhost":
		return errors.New("the URI's host or port has a shorter spelling, or a user or an escape in it: some servers take it for another one")
	}
	return nil
}
