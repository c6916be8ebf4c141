//go:build !race

package supervise

// supervisorEnvironment is what the launcher's variables are to a supervisor: nothing.
func supervisorEnvironment() []string { return []string{} }
