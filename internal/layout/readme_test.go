package layout_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestReadmeLinksWhatItPromises: every ✅ leads to a test, every link to a file, and the page stays short.
func TestReadmeLinksWhatItPromises(t *testing.T) {
	const root = "../.."
	raw, err := os.ReadFile(filepath.Join(root, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	text := string(raw)
	if n := strings.Count(text, "\n"); n > 250 {
		t.Errorf("README.md has %d lines, want at most 250", n)
	}
	proofs := 0
	for _, m := range regexp.MustCompile(`\[([^\]]*)\]\(([^)#]+)[^)]*\)`).FindAllStringSubmatch(text, -1) {
		label, path := m[1], m[2]
		if strings.Contains(path, "://") {
			continue
		}
		body, err := os.ReadFile(filepath.Join(root, path))
		if info, statErr := os.Stat(filepath.Join(root, path)); statErr == nil && info.IsDir() {
			err = nil
		}
		if err != nil {
			t.Errorf("README.md links %s: %v", path, err)
			continue
		}
		if label != "✅" {
			continue
		}
		proofs++
		if !strings.HasSuffix(path, "_test.go") || !strings.Contains(string(body), "\nfunc Test") {
			t.Errorf("README.md marks %s as a proof; it holds no test", path)
		}
	}
	if proofs < 10 || strings.Count(text, "✅") != proofs+1 { // once in the sentence above the table
		t.Errorf("README.md: %d proofs for %d marks", proofs, strings.Count(text, "✅"))
	}
}
