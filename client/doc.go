// Package client is the Go client for agents: who am I, what may I do, a credential for a target, a
// connection to it, and sub-agents with an identity of their own.
//
//	agent, err := client.FromEnvironment(ctx)       // inside `deputy run`
//	conn, err := agent.DialPostgres(ctx, "orders-db") // the chain travels along
//	sub, err := agent.Spawn(ctx, "researcher", client.Delegation{Cap: narrower})
//
// An agent started by `deputy run` speaks to its supervisor on the Unix socket that DEPUTY_AGENT_SOCKET
// names. The supervisor holds the agent's key and grants, exchanges them at the broker, and serves only
// processes that the kernel shows inside this very agent. A sub-agent made by [Agent.Spawn] lives in the
// same process, so its place in the tree is asserted, never attested; its key is made here and stays here.
//
// Nothing in this package decides anything: verifiers at the targets do.
package client
