package main

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/goccy/go-yaml"
)

// targetAdd is one target on its way into the files of a mesh.
type targetAdd struct {
	entry    *targetConfig
	proxy    *proxyConfig
	copies   []newFile
	changes  []newFile // whole files that take the place of what stands there
	inPolicy bool
}

type newFile struct {
	path     string
	contents []byte
	owner    *syscall.Stat_t
	mode     os.FileMode
}

// planTargetAdd reads everything and works out every file; it changes nothing.
func planTargetAdd(mesh, file, policyDir string) (*targetAdd, error) {
	a := &targetAdd{}
	proxyPath := filepath.Join(mesh, "proxy", "proxy.yaml")
	var err error
	if a.proxy, err = loadConfig(proxyPath, func(c *proxyConfig) error { return c.check(true) }); err != nil {
		return nil, err
	}
	if err := a.readEntry(file); err != nil {
		return nil, err
	}
	if err := a.takeFiles(filepath.Dir(file), filepath.Dir(proxyPath)); err != nil {
		return nil, err
	}
	full, err := yaml.Marshal(a.entry)
	if err != nil {
		return nil, fmt.Errorf("writing the entry anew: %w", err)
	}
	e := a.entry
	agent := agentTargetConfig{
		Name: e.Name, Kind: e.Kind, Address: e.Listen, Renewal: "https://" + a.proxy.RenewalListen,
		Proxy: fmt.Sprintf("spiffe://%s/deputy/proxy/%s", a.proxy.TrustDomain, a.proxy.Name),
	}
	if e.Postgres != nil {
		agent.Database = e.Postgres.DefaultDatabase
	}
	forAgent, err := yaml.Marshal(agent)
	if err != nil {
		return nil, fmt.Errorf("writing the entry for agents: %w", err)
	}
	forBroker := fmt.Sprintf("name: %s\nkind: %s\nproxies: [%s]\n", e.Name, e.Kind, a.proxy.Name)
	return a, errors.Join(
		change(a, proxyPath, listItem(string(full)), func(c *proxyConfig) error { return c.check(true) }),
		change(a, filepath.Join(mesh, "broker", "broker.yaml"), listItem(forBroker), func(c *brokerConfig) error { return c.check(true) }),
		change(a, filepath.Join(mesh, "agent", "agent.yaml"), listItem(string(forAgent)), (*agentConfig).check),
		a.changePolicy(policyDir),
	)
}

// readEntry reads the entry, alone or as the one item of a list, as in the proxy's own file.
func (a *targetAdd) readEntry(file string) error {
	raw, err := readSmall(file, maxConfigBytes)
	if err != nil {
		return err
	}
	if !listStart.Match(raw) {
		a.entry, err = parseConfig(file, raw, func(c *targetConfig) error { return a.checkEntry(c, "$") })
		return err
	}
	items, err := parseConfig(file, raw, func(c *[]targetConfig) error {
		if len(*c) != 1 {
			return errors.New("one target at a time is expected")
		}
		return a.checkEntry(&(*c)[0], "$[0]")
	})
	if err == nil {
		a.entry = &(*items)[0]
	}
	return err
}

var listStart = regexp.MustCompile(`(?m)\A(\s*#.*\n|\s*\n)*\s*- `)

func (a *targetAdd) checkEntry(entry *targetConfig, path string) error {
	if err := a.place(entry); err != nil {
		return err
	}
	return entry.check(path)
}

// place gives the target its address, and refuses a name or an address that another has.
func (a *targetAdd) place(entry *targetConfig) error {
	taken := []string{a.proxy.Feed, a.proxy.RenewalListen}
	for _, t := range a.proxy.Targets {
		if t.Name == entry.Name {
			return fmt.Errorf("the proxy has a target %s already; change it in its files", t.Name)
		}
		taken = append(taken, t.Listen)
	}
	if entry.Listen == "" {
		most := 0
		for _, at := range taken {
			_, port, err := net.SplitHostPort(at)
			if n, perr := strconv.Atoi(port); err == nil && perr == nil {
				most = max(most, n)
			}
		}
		if most == 0 || most >= 65535 {
			return errors.New("no port is left above those in use; give the entry an address (listen)")
		}
		entry.Listen = net.JoinHostPort("127.0.0.1", strconv.Itoa(most+1))
	}
	if slices.Contains(taken, entry.Listen) {
		return fmt.Errorf("listen: %s is in use by another target of the proxy", entry.Listen)
	}
	return nil
}

// takeFiles reads every file that the entry names by a relative path, and names in its place the copy that the proxy will read.
func (a *targetAdd) takeFiles(from, to string) error {
	owner, err := ownerOf(filepath.Join(to, "proxy.yaml"))
	if err != nil {
		return err
	}
	taken := map[string]string{}
	take := func(name string) (string, error) {
		if name == "" || filepath.IsAbs(name) {
			return name, nil
		}
		if at, ok := taken[name]; ok {
			return at, nil
		}
		at := filepath.Base(name)
		if !strings.HasPrefix(at, a.entry.Name+"-") && !strings.HasPrefix(at, a.entry.Name+".") {
			at = a.entry.Name + "-" + at
		}
		path := filepath.Join(to, at)
		if _, err := os.Lstat(path); err == nil || slices.ContainsFunc(a.copies, func(c newFile) bool { return c.path == path }) {
			return "", fmt.Errorf("%s would be copied to %s, and there is one; nothing is overwritten", name, path)
		}
		raw, err := readSmall(filepath.Join(from, name), maxConfigBytes)
		if err != nil {
			return "", err
		}
		a.copies = append(a.copies, newFile{path: path, contents: raw, owner: owner, mode: 0o600})
		taken[name] = at
		return at, nil
	}
	return eachFile(reflect.ValueOf(a.entry).Elem(), take)
}

// eachFile gives every value of a key *_file, and every value under *_files, to f, and puts what it returns in its place.
func eachFile(v reflect.Value, f func(string) (string, error)) error {
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			return nil
		}
		return eachFile(v.Elem(), f)
	case reflect.Slice:
		for i := range v.Len() {
			if err := eachFile(v.Index(i), f); err != nil {
				return err
			}
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if !v.Type().Field(i).IsExported() {
				continue
			}
			key, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("yaml"), ",")
			field := v.Field(i)
			switch {
			case strings.HasSuffix(key, "_file") && field.Kind() == reflect.String:
				name, err := f(field.String())
				if err != nil {
					return fmt.Errorf("%s: %w", key, err)
				}
				field.SetString(name)
			case strings.HasSuffix(key, "_files") && field.Kind() == reflect.Map:
				for _, k := range field.MapKeys() {
					name, err := f(field.MapIndex(k).String())
					if err != nil {
						return fmt.Errorf("%s.%s: %w", key, k, err)
					}
					field.SetMapIndex(k, reflect.ValueOf(name))
				}
			default:
				if err := eachFile(field, f); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// change puts an item at the end of the list `targets` of a file, as text, so that comments stay, and has it read as its role will.
func change[T any](a *targetAdd, path, item string, check func(*T) error) error {
	raw, err := readSmall(path, maxConfigBytes)
	if err != nil {
		return err
	}
	changed, err := appendUnder(raw, "targets:", item)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if _, err := parseConfig(path, changed, check); err != nil {
		return fmt.Errorf("it wouldn't be read with this target: %w", err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	owner, err := ownerOf(path)
	if err != nil {
		return err
	}
	a.changes = append(a.changes, newFile{path: path, contents: changed, owner: owner, mode: info.Mode().Perm()})
	return nil
}

func (a *targetAdd) changePolicy(dir string) error {
	if dir == "" {
		return nil
	}
	a.inPolicy = true
	return change(a, filepath.Join(dir, "policy.yaml"), fmt.Sprintf("  %s:\n    kind: %s\n", a.entry.Name, a.entry.Kind), func(m *policyManifest) error {
		if m.Targets[a.entry.Name].Kind != a.entry.Kind {
			return errors.New("it has other targets than those under targets")
		}
		return nil
	})
}

// listItem is a mapping as an item of a list under a key of a file.
func listItem(mapping string) string {
	lines := strings.Split(strings.TrimRight(mapping, "\n"), "\n")
	return "  - " + strings.Join(lines, "\n    ") + "\n"
}

// appendUnder puts text at the end of what stands, indented, under a key of a YAML file.
func appendUnder(raw []byte, key, text string) ([]byte, error) {
	lines := bytes.SplitAfter(raw, []byte("\n"))
	start := slices.IndexFunc(lines, func(l []byte) bool { return strings.TrimRight(string(l), " \r\n") == key })
	if start < 0 {
		return nil, fmt.Errorf("no line %q is there to add below; add the target by hand (docs/targets/README.md)", key)
	}
	end := start + 1
	for i := end; i < len(lines); i++ {
		if l := lines[i]; len(l) > 0 && (l[0] == ' ' || l[0] == '-') && len(bytes.TrimSpace(l)) > 0 {
			end = i + 1
		} else if len(bytes.TrimSpace(l)) > 0 && l[0] != '#' {
			break
		}
	}
	before := bytes.Join(lines[:end], nil)
	if !bytes.HasSuffix(before, []byte("\n")) {
		before = append(before, '\n')
	}
	return slices.Concat(before, []byte(text), bytes.Join(lines[end:], nil)), nil
}

// write makes the copies, then puts the changed files in the place of those that were there. What fails takes back what was made,
// unless a file of a role names it by then.
func (a *targetAdd) write() (err error) {
	var made []string
	defer func() {
		if err != nil {
			for _, path := range made {
				err = errors.Join(err, os.Remove(path))
			}
		}
	}()
	for _, c := range a.copies {
		if err := writeNew(c.path, c.contents, c.mode); err != nil {
			return err
		}
		made = append(made, c.path)
		if err := c.hand(c.path); err != nil {
			return err
		}
	}
	next := make([]string, len(a.changes))
	for i, c := range a.changes {
		next[i] = c.path + "." + rand.Text()
		if err := writeNew(next[i], c.contents, c.mode); err != nil {
			return err
		}
		made = append(made, next[i])
		if err := c.hand(next[i]); err != nil {
			return err
		}
	}
	for i, c := range a.changes {
		if err := os.Rename(next[i], c.path); err != nil {
			return fmt.Errorf("%d of %d files have the target, %s hasn't: %w", i, len(a.changes), c.path, err)
		}
		made = next[i+1:]
	}
	return nil
}

// hand gives a new file to who owns those beside it.
func (f newFile) hand(path string) error {
	if err := os.Chmod(path, f.mode); err != nil { // whatever the umask took
		return err
	}
	if f.owner == nil || int(f.owner.Uid) == os.Geteuid() {
		return nil
	}
	return os.Chown(path, int(f.owner.Uid), int(f.owner.Gid))
}

func ownerOf(path string) (*syscall.Stat_t, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	st, _ := info.Sys().(*syscall.Stat_t)
	return st, nil
}
