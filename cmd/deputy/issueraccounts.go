package main

import (
	"bufio"
	"errors"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/deputymesh/deputy/issuer/spawn"
)

// checkAccounts refuses a range of agents' uids that people have already: by an account, or by the ranges that
// a user may map into namespaces of their own.
func (c *issuerConfig) checkAccounts() error {
	agents := c.uids()
	if agents.IsZero() {
		return nil
	}
	for _, file := range []struct {
		path  string
		find  func(io.Reader, spawn.UIDRange) (string, error)
		means string
	}{
		{"/etc/passwd", accountIn, "is an account of this host"},
		{"/etc/subuid", subordinateIn, "may map some of these uids into user namespaces (/etc/subuid)"},
	} {
		f, err := os.Open(file.path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		who, err := file.find(f, agents)
		f.Close()
		if err != nil {
			return err
		}
		if who != "" {
			return fieldError("$.agent_uids", "a range that nobody else uses is expected: %s %s", who, file.means)
		}
	}
	return nil
}

// accountIn returns the first account of a passwd file whose uid lies in the range.
func accountIn(r io.Reader, agents spawn.UIDRange) (string, error) {
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		f := strings.Split(sc.Text(), ":")
		if len(f) < 3 {
			continue
		}
		if uid, err := strconv.ParseUint(f[2], 10, 32); err == nil && agents.Contains(uint32(uid)) {
			return f[0], nil
		}
	}
	return "", sc.Err()
}

// subordinateIn returns the first user of a subuid file whose range meets the agents'.
func subordinateIn(r io.Reader, agents spawn.UIDRange) (string, error) {
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		f := strings.Split(sc.Text(), ":")
		if len(f) != 3 {
			continue
		}
		first, err := strconv.ParseUint(f[1], 10, 32)
		count, err2 := strconv.ParseUint(f[2], 10, 32)
		if err != nil || err2 != nil || count == 0 {
			continue
		}
		if first <= uint64(agents.Last) && first+count-1 >= uint64(agents.First) {
			return f[0], nil
		}
	}
	return "", sc.Err()
}
