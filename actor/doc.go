// Package actor is the chain of who acts on whose behalf: it makes, narrows,
// signs, parses, verifies, matches and prints it.
//
// A chain starts at a user's sign-in. The user signs a [UserGrant] to the first
// agent, each agent signs a [Grant] to the next, and the broker countersigns the
// whole for one target with a [Token]. What an agent presents is the
// [Credential]: token, grants, and the ID token, in one string.
//
// Invariants:
//
//   - Every hop is signed by the one before it. A [Chain] comes only out of
//     [Verifier.Verify], which fails closed at the first failure, in the order of
//     the specification, with a [Class] that says which.
//   - Authority only shrinks: [Details.Within] has no way to widen, and a
//     constraint that a hop doesn't repeat is a refusal.
//   - Nobody grades itself. A [Grade] is read from the issuer's extension in the
//     hop's own certificate.
//   - Verifying calls nobody: keys, bundles and revocations are there already.
//
// The specification, precise enough to write a second verifier from, is
// docs/spec/credential.md; its test vectors are in testdata/vectors.
package actor
