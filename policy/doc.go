// Package policy decides: (chain, action, resource, facts) in, a decision and its obligations out.
//
// A policy set is a few Cedar files, a list of targets and a version, signed as one compact JWS
// (typ deputy-policy+jwt) by a key that only the operator holds. [Open] verifies the signature,
// parses the files, validates every policy against the schema of this package (schema.cedarschema)
// and compiles the obligations; a set with any fault doesn't load, so the one before it stays in force.
//
// Invariants:
//
//   - Nothing here does I/O, keeps time or calls anybody.
//   - An error while a policy is evaluated is a refusal. Cedar itself skips a forbid that errors, which
//     would turn a fault into a permission.
//   - The action index is a shortcut only: it finds the same policies as the full set.
//   - Facts about the chain are computed in one place, [NewSubjectFromFacts]; Cedar has no quantifiers.
//   - Obligations of all matching permits apply together: every mask, the smallest limit, the fullest
//     recording.
package policy
