// Package operatorapi is the broker's HTTP service for operators, on the web listener: revocations and policy.
//
// A call needs two things: an unexpired ID token of a configured provider, and a proof over this very
// call, signed with the login key whose thumbprint is the ID token's nonce. ID tokens travel in
// credentials, so the token alone is never enough. A proof is used once. What a caller may do follows
// from roles in configuration; a user may always revoke his own sessions and tasks. Every call of
// somebody who signed in is recorded, allowed or not.
package operatorapi
