//go:build race

package supervise

import "os"

// supervisorEnvironment passes the race detector's options on, or each supervisor would sleep for a second
// when it ends.
func supervisorEnvironment() []string { return []string{"GORACE=" + os.Getenv("GORACE")} }
