package integration_test

import (
	"testing"

	"github.com/deputymesh/deputy/internal/testmesh"
)

// Without root everything works as well, under one uid, and every hop is graded asserted. Where the tests
// run without root, all of them show that; as root, these are run again as nobody.
func TestWithoutRoot(t *testing.T) {
	if !testmesh.Isolated() {
		m := testmesh.Shared(t)
		if r := m.Login(t, "alice").SQL(t, testmesh.Nested, "SELECT email FROM customers WHERE id = 1"); r.Stdout != "i***@example.com\n" {
			t.Errorf("psql: %s", r)
		}
		return
	}
	t.Parallel()
	testmesh.RunUnprivileged(t, "^(TestChainReachesTheRecord|TestNestedAgentsAreGraded|TestUnsetVariablesStayInside|TestKillingTheSupervisorGainsNothing|TestMemoryOfOthersStaysClosed|TestExecChangesNobodysPlace|TestAgentsEndWithWhatHoldsThem|TestFloodsStayBounded|TestSocketsServeTheirOwnAgentOnly|TestNobodyGetsAnothersName|TestSurroundingsDecideNothing|TestRunPassesEverythingThrough|TestNoRecordNoCommand|TestStolenCredentialIsUseless|TestDemoKeepsItsWord|TestDevSaysThatItProvesNothing|TestWithoutRoot)$")
}
