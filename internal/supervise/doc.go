// Package supervise is the agent side of `deputy run`: the supervisor that holds an agent's key, and the
// launcher that starts supervisors under uids of their own.
//
// A supervisor makes its key, attaches to the issuer, keeps SVID and grants fresh, starts the agent's
// program and serves it: the agent socket (deputy.agent.v1 and the X.509 half of the SPIFFE Workload
// API) and the local listeners. It serves only processes whose innermost supervisor it is, by the
// issuer's and the kernel's word; the environment decides nothing. When its program ends, everything
// that it left behind is ended too; when its parent or the issuer is gone, the program ends.
//
// The launcher is a root process outside every agent. It believes a supervisor nothing: which uid a
// child gets is the issuer's choice, learned by Claim with the child's ticket.
//
// Linux only: what tells one process from another here are pidfds, subreapers and control groups.
package supervise
