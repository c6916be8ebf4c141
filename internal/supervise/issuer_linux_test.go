package supervise_test

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/deputymesh/deputy/internal/testmesh"
)

func TestAnAgentOutlivesARestartOfTheIssuerAndNotItsAbsence(t *testing.T) {
	modes(t, func(t *testing.T, flag string) {
		script := `echo up; while read x; do ` + quote([]string{world.deputy, "whoami"}) + `; echo answered; done; echo over`
		first := testmesh.Begin(t, testmesh.Command{Args: run(flag, sh(script)...)})
		nested := testmesh.Begin(t, testmesh.Command{Args: run(flag, inner("child", flag, sh(script)...)...)})
		for _, l := range []*testmesh.Live{first, nested} {
			l.Await("up", 1)
		}
		restartIssuer(t, 0)
		for _, l := range []*testmesh.Live{first, nested} {
			// The supervisor resumes within moments; until then its processes can't be placed.
			deadline := time.Now().Add(20 * time.Second)
			for n := 1; !strings.Contains(l.Output(), "sample-alice"); n++ {
				l.Type("ask\n")
				l.Await("answered", n)
				if time.Now().After(deadline) {
					t.Fatalf("the agent did not come back: %s%s", l.Output(), l.Errors())
				}
			}
		}
		began := time.Now()
		restartIssuer(t, 9*time.Second)
		for _, l := range []*testmesh.Live{first, nested} {
			r := l.Wait(20 * time.Second)
			if r.Code == 0 || strings.Contains(r.Stdout, "over") {
				t.Errorf("an agent went on without an issuer: %s", r)
			}
		}
		if took := time.Since(began); took > 25*time.Second {
			t.Errorf("it took %s", took)
		}
		if r := exec(t, run(flag, "true")); r.Code != 0 {
			t.Errorf("after the issuer came back: %s", r)
		}
	})
}

// restartIssuer kills the issuer and starts it again after a while.
func restartIssuer(t *testing.T, after time.Duration) {
	t.Helper()
	if err := syscall.Kill(world.issuer.Pid(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	world.issuer.Wait(10 * time.Second)
	time.Sleep(after)
	world.startIssuer()
	await(t, "unix", world.socket)
}
