// Package spawn is the issuer's service for nested agents (deputy.spawn.v1): it decides from the kernel alone where in the
// tree of agents a caller stands, names and grades agents, and says when they have ended.
//
// What holds:
//
//   - A process is inside the innermost agent that its ancestry, its cgroup and its uid show. Where they contradict each
//     other, where its agent has ended, or where it runs under a uid of the agents' range that belongs to no live agent, it has
//     no place, and is refused: it is never "outside". A supervisor that has ended stays a mark until its process is dead.
//   - Nobody grades itself. `attested` needs a uid that this issuer chose, that no other agent has, that only root outside every agent
//     could hand out, and a peer that the kernel named by SO_PEERPIDFD. Everything else is `asserted`.
//   - One live key lineage per agent: a ticket is good once, a renewal is signed by the current key, on the same stream, or, for
//     a few seconds after it broke, by the same process.
//   - Evidence before effect: an agent's instance is in the store before its name leaves, the spawn record is durable before its
//     SVID is signed.
//   - An agent's end ends everything below it, once, with a revision that rises; if the store fails the agent is dead here all
//     the same, and the end is written as soon as the store works.
//
// Known limit: processes of one uid can't be told apart safely. The orphans of an unisolated agent whose supervisor
// was killed are adopted by init, and look like the user's own processes from then on. That is why such agents are `asserted`.
package spawn
