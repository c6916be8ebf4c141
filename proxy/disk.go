package proxy

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/deputymesh/deputy/internal/strictjson"
	"github.com/deputymesh/deputy/policy"
)

const (
	keptFile     = "feed.json"
	policyFile   = "policy.jws"
	maxKeptBytes = 4096
)

// keptState is what must not fall over a restart. Somebody who rolls the disk back is beyond it.
type keptState struct {
	Revision      uint64
	PolicyVersion uint64
}

type keptJSON struct {
	Revision      int64 `json:"revision"`
	PolicyVersion int64 `json:"policy_version"`
}

// readKept returns the zero state if nothing was kept yet. A file that can't be read is an error: to go
// on without it would be to forget.
func readKept(dir string) (keptState, string, error) {
	raw, err := readFile(filepath.Join(dir, keptFile), maxKeptBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return keptState{}, "", nil
	}
	if err != nil {
		return keptState{}, "", err
	}
	var k keptJSON
	if err := strictjson.Unmarshal(raw, &k); err != nil || k.Revision < 0 || k.PolicyVersion < 0 {
		return keptState{}, "", fmt.Errorf("%s is damaged; restore it, or remove the folder to start anew and accept any revision once", keptFile)
	}
	kept := keptState{Revision: uint64(k.Revision), PolicyVersion: uint64(k.PolicyVersion)}
	signed, err := readFile(filepath.Join(dir, policyFile), policy.MaxSignedBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return kept, "", nil
	}
	return kept, string(signed), err
}

func writeKept(dir string, k keptState) error {
	raw, err := json.Marshal(keptJSON{int64(k.Revision), int64(k.PolicyVersion)})
	if err != nil {
		return err
	}
	return writeFile(dir, keptFile, raw)
}

func writePolicy(dir, signed string) error { return writeFile(dir, policyFile, []byte(signed)) }

func readFile(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(raw)) > limit {
		return nil, fmt.Errorf("%s is larger than %d bytes", filepath.Base(path), limit)
	}
	return raw, nil
}

// writeFile replaces a file so that after a crash the old or the new content is there, whole.
func writeFile(dir, name string, data []byte) error {
	f, err := os.CreateTemp(dir, name+".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), filepath.Join(dir, name)); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
