// Package state is what a broker knows: sessions, revocations, ended agents, the policy set in force.
//
// The [Store] is the truth; a [State] answers from indexed memory that it fills from the store once and
// then keeps in step, change by change. What concerns proxies has a revision: the first is 1 and each
// is one more than the one before, so that nobody can miss one unseen.
//
//   - A change is in memory, and told to anybody, only after the store said that it is durable.
//   - When the store fails, memory is read again from it; until that succeeds every question is
//     answered with an error, which refuses.
//   - A revocation may be forgotten, a session that it ended stays ended.
package state
