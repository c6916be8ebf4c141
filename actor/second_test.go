package actor_test

import (
	"os/exec"
	"testing"

	"github.com/deputymesh/deputy/internal/testverifier"
)

// TestASecondVerifierJudgesTheVectorsTheSame runs docs/spec/verifier, which was
// written from the specification and knows nothing of this package.
func TestASecondVerifierJudgesTheVectorsTheSame(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), testverifier.Python, "-B", testverifier.Script(), "vectors", vectorDir).CombinedOutput()
	if err != nil {
		t.Fatalf("%v (it needs the Debian packages python3 and python3-cryptography)\n%s", err, out)
	}
	t.Logf("%s", out)
}
