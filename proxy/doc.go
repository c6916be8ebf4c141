// Package proxy is the core that stands in front of targets: listener → verified chain → [Session] →
// engine → target.
//
// An [Engine] speaks one target's protocol. It hands the peer's certificate and credential to
// [Core.Open], turns what the agent sends into a [Command], and asks [Session.Authorize], which matches
// the capability, decides by policy, writes the decision to the audit log and returns a single-use
// [Pass]. Only with a pass in hand does an engine write to the target.
//
// Invariants, after the laws of docs/design.md:
//
//   - No command is forwarded before its decision is durable, unless the engine has proven it read-only;
//     then Pass.Wait holds the answer back instead.
//   - A pass is good for one command of one session, once.
//   - What can't be verified, decided or recorded is refused, with a reason and a record id.
//   - To verify and decide the core calls nobody: keys, policy and revocations are in its [State], which
//     the broker's feed keeps fresh. When the feed is older than the staleness limit, everything is refused
//     and everything live is ended.
//   - What the broker sends can take away only: token keys count under the certifying key, policy sets
//     under the policy keys, and neither their version nor the feed's revision falls, even over a restart.
package proxy
